// Generation: one client's running request, protocol-free: one or several prompts with one or
// several choices each, read from their journals on demand and rendered.
//
//   ASSIGN_OR_RETURN(auto generation, Generation::Start(context, std::move(requests)));
//   generation->SetListener([…] { strand.Post([…] { Continue(); }); });
//   // Continue:
//   ASSIGN_OR_RETURN(std::vector<Generation::Output> outputs, generation->Pull(256));
//   if (outputs.empty() && generation->done()) { … }
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/frontend/context.h"
#include "coordinator/inference.h"
#include "text/answer_parser.h"

namespace epic::coordinator {

struct UsageCounts {
  int prompt_tokens = 0;
  int completion_tokens = 0;
  int cached_tokens = 0;
  int reasoning_tokens = 0;
};

// One thread at a time. Destroying it before it is done cancels the requests.
class Generation {
 public:
  // The text that one token gave, or the end of a choice. Outputs of a choice come in order.
  struct Output {
    int index = 0;                      // choice, counted through all prompts
    int position = 0;                   // tokens of this choice so far
    std::optional<JournalToken> token;  // none: only the end
    std::string reasoning;
    std::string content;
    FinishReason finish = v1::FINISH_REASON_NONE;  // with the last output of the choice
  };

  // Submits all, or none. Requests need one prompt each.
  static absl::StatusOr<std::unique_ptr<Generation>> Start(const FrontendContext& context,
                                                           std::vector<Request> requests);
  ~Generation();
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  // As RequestStream::SetListener, for all prompts.
  void SetListener(std::function<void()> listener);

  // Renders tokens that are new, at most `token_count_max` of them; empty: none yet, or done. An
  // error ends everything.
  absl::StatusOr<std::vector<Output>> Pull(int token_count_max);
  bool done() const { return open_choices_ == 0; }

  int choice_count() const { return static_cast<int>(choices_.size()); }
  int prompt_count() const { return static_cast<int>(prompts_.size()); }
  // Alternatives asked for with each token; -1: no logprobs.
  int logprobs() const { return logprobs_; }
  int prompt_of(int index) const { return choices_[index].prompt; }
  const std::vector<int32_t>& prompt(int prompt) const { return prompts_[prompt].tokens; }
  // The log-probabilities of the prompt's tokens 1 .. n-1. There are none before they are computed,
  // or if the client asked for none.
  std::vector<JournalToken> prompt_logprobs(int prompt) const;
  UsageCounts usage() const;

 private:
  struct Prompt {
    std::vector<int32_t> tokens;
    std::shared_ptr<RequestStream> stream;
  };
  struct Choice {
    int prompt = 0;
    int choice = 0;    // within the prompt
    int position = 0;  // tokens read
    int reasoning_tokens = 0;
    bool finished = false;
    absl::Time last_token_at = absl::InfinitePast();
    text::AnswerParser parser;
  };

  Generation(const FrontendContext& context, absl::Time arrival)
      : context_(context), arrival_(arrival) {}
  absl::Status PullChoice(int index, int token_count_max, std::vector<Output>* outputs);
  void Finish(Choice& choice, FinishReason reason, Output* output);
  void CountTokens(Choice& choice, int count);

  const FrontendContext& context_;
  const absl::Time arrival_;
  std::vector<Prompt> prompts_;
  std::vector<Choice> choices_;
  int open_choices_ = 0;
  int logprobs_ = -1;
  size_t next_choice_ = 0;  // whose turn it is
};

}  // namespace epic::coordinator
