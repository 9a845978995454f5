#include "coordinator/frontend/answer_source.h"

#include "coordinator/frontend/openai_answer.h"

namespace epic::coordinator {
namespace {

// Tokens that are turned into events at once. The number is chosen: it bounds what waits for one
// socket.
constexpr int kTokensPerPull = 256;

class StreamSource : public AnswerSource {
 public:
  StreamSource(const FrontendContext& context, OpenAiRequest request,
               std::unique_ptr<Generation> generation)
      : request_(std::move(request)),
        generation_(std::move(generation)),
        answer_(context, request_, *generation_) {}

  void SetListener(std::function<void()> listener) override {
    generation_->SetListener(std::move(listener));
  }
  bool streams() const override { return true; }
  // Behind an id, an empty line is an event without data to some clients; a comment is not.
  std::string keep_alive() const override {
    return request_.include_event_ids ? ": waiting\n" : "\n";
  }

  Part Pull() override {
    Part part;
    if (!begun_) part.bytes = answer_.Begin();
    begun_ = true;
    absl::StatusOr<std::vector<Generation::Output>> outputs = generation_->Pull(kTokensPerPull);
    if (!outputs.ok()) {
      // The head with its status has gone out, so an error can only be an event of the stream.
      part.bytes += answer_.Error(outputs.status());
      part.done = true;
      return part;
    }
    for (const Generation::Output& output : *outputs) part.bytes += answer_.Events(output);
    part.done = generation_->done();
    if (part.done) part.bytes += answer_.End();
    return part;
  }

 private:
  // The answer refers to both, so they are declared before it and destroyed after it.
  const OpenAiRequest request_;
  const std::unique_ptr<Generation> generation_;
  StreamedAnswer answer_;
  bool begun_ = false;
};

class WholeSource : public AnswerSource {
 public:
  WholeSource(const FrontendContext& context, OpenAiRequest request,
              std::unique_ptr<Generation> generation)
      : request_(std::move(request)),
        generation_(std::move(generation)),
        answer_(context, request_, *generation_) {}

  void SetListener(std::function<void()> listener) override {
    generation_->SetListener(std::move(listener));
  }
  bool streams() const override { return false; }

  // Takes all that is there: nothing is sent before the end, so nothing has to wait for a socket.
  Part Pull() override {
    for (;;) {
      absl::StatusOr<std::vector<Generation::Output>> outputs = generation_->Pull(kTokensPerPull);
      // Nothing has gone out so far, so the error is the whole answer and has its own HTTP status.
      if (!outputs.ok()) return {.answer = ErrorAnswer(outputs.status()), .done = true};
      for (Generation::Output& output : *outputs) answer_.Add(std::move(output));
      if (generation_->done()) return {.answer = HttpAnswer{.body = answer_.Body()}, .done = true};
      if (outputs->empty()) return {};
    }
  }

 private:
  const OpenAiRequest request_;
  const std::unique_ptr<Generation> generation_;
  WholeAnswer answer_;
};

}  // namespace

std::unique_ptr<AnswerSource> NewAnswerSource(const FrontendContext& context, OpenAiRequest request,
                                              std::unique_ptr<Generation> generation) {
  if (request.stream) {
    return std::make_unique<StreamSource>(context, std::move(request), std::move(generation));
  }
  return std::make_unique<WholeSource>(context, std::move(request), std::move(generation));
}

}  // namespace epic::coordinator
