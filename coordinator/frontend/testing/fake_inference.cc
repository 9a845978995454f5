#include "coordinator/frontend/testing/fake_inference.h"

#include "base/check.h"

namespace epic::coordinator {

class FakeInference::Stream : public RequestStream {
 public:
  Stream(FakeInference& inference, int number) : inference_(inference), number_(number) {}
  ~Stream() override {
    const absl::MutexLock lock(&inference_.mutex_);
    inference_.entries_[number_].alive = false;
    inference_.entries_[number_].listener = nullptr;
  }

  void SetListener(std::function<void()> listener) override {
    {
      const absl::MutexLock lock(&inference_.mutex_);
      inference_.entries_[number_].listener = listener;
    }
    if (listener) listener();
  }

  Slice Read(int choice, int from, int count_max) const override {
    const absl::MutexLock lock(&inference_.mutex_);
    const Journal& journal = inference_.entries_[number_].journals[choice];
    const auto first = journal.tokens.begin() + from;
    const auto count = std::min<ptrdiff_t>(count_max, journal.tokens.end() - first);
    inference_.tokens_read_ += count;
    Slice slice{.tokens = {first, first + count}};
    if (first + count < journal.tokens.end()) return slice;
    slice.finish = journal.finish;
    slice.error = journal.error;
    return slice;
  }

  int cached_tokens() const override { return kCachedTokens; }

  std::vector<JournalToken> prompt_logprobs() const override {
    const absl::MutexLock lock(&inference_.mutex_);
    const Request& request = inference_.entries_[number_].request;
    std::vector<JournalToken> scored;
    if (!request.prompt_logprobs) return scored;
    for (size_t i = 1; i < request.prompt.size(); ++i) {
      scored.push_back({.token = request.prompt[i], .logprob = -0.5f * static_cast<float>(i)});
    }
    return scored;
  }

 private:
  FakeInference& inference_;
  const int number_;
};

absl::StatusOr<std::shared_ptr<RequestStream>> FakeInference::Submit(Request request) {
  const absl::MutexLock lock(&mutex_);
  if (!refusal_.ok()) return refusal_;
  Entry& entry = entries_.emplace_back();
  entry.journals.resize(request.choices);
  entry.request = std::move(request);
  for (Journal& journal : entry.journals) {
    for (const int32_t token : answer_) {
      v1::TokenLogprob likeliest;
      likeliest.set_token_id(token);
      likeliest.set_logprob(-0.25f);
      journal.tokens.push_back({.token = token, .logprob = -0.25f, .top = {likeliest}});
    }
    journal.finish = answer_finish_;
  }
  return std::make_shared<Stream>(*this, static_cast<int>(entries_.size()) - 1);
}

absl::Status FakeInference::Cancel(const std::string& request_id) {
  int found = -1;
  {
    const absl::MutexLock lock(&mutex_);
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i].request.id == request_id && entries_[i].alive) found = static_cast<int>(i);
    }
  }
  if (found < 0) return absl::NotFoundError("no such request: " + request_id);
  Finish(found, 0, v1::FINISH_REASON_CANCELLED);
  return absl::OkStatus();
}

ModelInfo FakeInference::model() const {
  return {.names = {"tiny-r1", "tiny"},
          .max_model_len = 4096,
          .vocab_size = 1024,
          .system_fingerprint = "epic-test"};
}

ClusterStatus FakeInference::status() const {
  const absl::MutexLock lock(&mutex_);
  int running = 0;
  for (const Entry& entry : entries_) running += entry.alive;
  ClusterStatus status{.ready = ready_, .reason = reason_, .requests_running = running};
  status.ranks.push_back(
      {.rank = 0, .state = ready_ ? "ready" : "loading", .kv_pages_used = 3, .kv_page_count = 12});
  return status;
}

void FakeInference::AnswerWith(std::vector<int32_t> tokens, FinishReason finish) {
  const absl::MutexLock lock(&mutex_);
  answer_ = std::move(tokens);
  answer_finish_ = finish;
}

void FakeInference::RefuseWith(absl::Status status) {
  const absl::MutexLock lock(&mutex_);
  refusal_ = std::move(status);
}

void FakeInference::SetReady(bool ready, std::string reason) {
  const absl::MutexLock lock(&mutex_);
  ready_ = ready;
  reason_ = std::move(reason);
}

void FakeInference::Append(int request, int choice, std::vector<int32_t> tokens) {
  {
    const absl::MutexLock lock(&mutex_);
    Journal& journal = entries_.at(request).journals.at(choice);
    for (const int32_t token : tokens) journal.tokens.push_back({.token = token});
  }
  Notify(request);
}

void FakeInference::Finish(int request, int choice, FinishReason finish, absl::Status error) {
  {
    const absl::MutexLock lock(&mutex_);
    entries_.at(request).journals.at(choice).finish = finish;
    entries_.at(request).journals.at(choice).error = std::move(error);
  }
  Notify(request);
}

void FakeInference::Notify(int request) {
  std::function<void()> listener;
  {
    const absl::MutexLock lock(&mutex_);
    listener = entries_[request].listener;
  }
  if (listener) listener();
}

Request FakeInference::request(int request) const {
  const absl::MutexLock lock(&mutex_);
  return entries_[request].request;
}

int FakeInference::request_count() const {
  const absl::MutexLock lock(&mutex_);
  return static_cast<int>(entries_.size());
}

int64_t FakeInference::tokens_read() const {
  const absl::MutexLock lock(&mutex_);
  return tokens_read_;
}

int FakeInference::live_stream_count() const {
  const absl::MutexLock lock(&mutex_);
  int alive = 0;
  for (const Entry& entry : entries_) alive += entry.alive;
  return alive;
}

FakeWorld::FakeWorld()
    : context{.inference = inference,
              .clock = RealClock(),
              .random = RealRandom(),
              .metrics = metrics,
              .metrics_page = metrics_page,
              .defaults = {.eos_ids = {1008}},
              .version = "test"} {
  context.defaults.sampling.set_temperature(0.6f);
  context.defaults.sampling.set_top_p(0.95f);
  auto tokenizer = text::Tokenizer::Load("models/tiny-r1");
  CHECK_OK(tokenizer.status());
  context.tokenizer = *tokenizer;
  auto chat_template = text::ChatTemplate::Load("models/tiny-r1");
  CHECK_OK(chat_template.status());
  context.chat_template = *chat_template;
}

std::vector<int32_t> FakeWorld::Encode(const std::string& text) const {
  auto ids = context.tokenizer->Encode(text, {.parse_special = true});
  CHECK_OK(ids.status());
  return *ids;
}

}  // namespace epic::coordinator
