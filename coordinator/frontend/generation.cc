#include "coordinator/frontend/generation.h"

#include <algorithm>

#include "base/check.h"
#include "base/status.h"
#include "coordinator/frontend/metrics.h"

namespace epic::coordinator {
namespace {

const char* ReasonLabel(FinishReason reason) {
  // These words are vLLM's, because the counter is also given as vllm:request_success_total.
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_ERROR:
      return "error";
    default:
      return "abort";
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Generation>> Generation::Start(const FrontendContext& context,
                                                              std::vector<Request> requests) {
  std::unique_ptr<Generation> generation(new Generation(context, context.clock.Now()));
  for (Request& request : requests) {
    std::vector<Choice> choices;
    for (int choice = 0; choice < request.choices; ++choice) {
      choices.push_back(
          {.prompt = generation->prompt_count(),
           .choice = choice,
           .parser = text::AnswerParser(*context.tokenizer, request.prompt, request.answer)});
    }
    const int max_tokens = request.max_tokens;
    generation->logprobs_ = request.logprobs;
    // A copy: the request goes to the core, and usage, echo and token ids still need its prompt.
    std::vector<int32_t> tokens = request.prompt;
    absl::StatusOr<std::shared_ptr<RequestStream>> stream =
        context.inference.Submit(std::move(request));
    // If one is refused, all are: those that were accepted before it are cancelled, because their
    // streams go with the generation.
    if (!stream.ok()) {
      context.metrics.OnRefused(stream.status().code());
      return stream.status();
    }
    context.metrics.OnAccepted(static_cast<int>(tokens.size()), static_cast<int>(choices.size()),
                               max_tokens);
    // Choices of a refused request never get here: the destructor would count them as finished.
    generation->prompts_.push_back({std::move(tokens), *std::move(stream)});
    for (Choice& choice : choices) generation->choices_.push_back(std::move(choice));
    generation->open_choices_ = generation->choice_count();
  }
  return generation;
}

Generation::~Generation() {
  // No listener may be called once the members begin to go.
  for (Prompt& prompt : prompts_) prompt.stream->SetListener(nullptr);
  for (Choice& choice : choices_) {
    // The streams cancel the requests when they are destroyed; here the choices are only counted.
    if (!choice.finished) Finish(choice, v1::FINISH_REASON_CANCELLED, nullptr);
  }
}

void Generation::SetListener(std::function<void()> listener) {
  for (Prompt& prompt : prompts_) prompt.stream->SetListener(listener);
}

absl::StatusOr<std::vector<Generation::Output>> Generation::Pull(int token_count_max) {
  CHECK_GT(token_count_max, 0);
  std::vector<Output> outputs;
  // Each pull begins with the next choice, so one that is long cannot keep the others waiting.
  for (size_t turn = 0; turn < choices_.size(); ++turn) {
    const int room = token_count_max - static_cast<int>(outputs.size());
    if (room <= 0) break;
    const auto index = static_cast<int>((next_choice_ + turn) % choices_.size());
    if (choices_[index].finished) continue;
    RETURN_IF_ERROR(PullChoice(index, room, &outputs));
  }
  if (!choices_.empty()) next_choice_ = (next_choice_ + 1) % choices_.size();
  return outputs;
}

absl::Status Generation::PullChoice(int index, int token_count_max, std::vector<Output>* outputs) {
  Choice& choice = choices_[index];
  const RequestStream& stream = *prompts_[choice.prompt].stream;
  Slice slice = stream.Read(choice.choice, choice.position, token_count_max);
  CountTokens(choice, static_cast<int>(slice.tokens.size()));
  for (JournalToken& token : slice.tokens) {
    text::AnswerDelta delta = choice.parser.Push(token.token);
    choice.reasoning_tokens += delta.reasoning_tokens;
    outputs->push_back({.index = index,
                        .position = ++choice.position,
                        .token = std::move(token),
                        .reasoning = std::move(delta.reasoning),
                        .content = std::move(delta.content)});
  }
  if (slice.finish == v1::FINISH_REASON_NONE) return absl::OkStatus();
  // The error takes the place of the outputs of this pull: tokens that were read with it are not
  // sent.
  if (slice.finish == v1::FINISH_REASON_ERROR) {
    Finish(choice, slice.finish, nullptr);
    return slice.error.ok() ? absl::InternalError("the request failed") : slice.error;
  }
  // The end may come without a token: after a cancel, or when the pull before took the last token
  // before the journal was sealed. The end then needs an output of its own.
  if (slice.tokens.empty()) {
    outputs->push_back({.index = index, .position = choice.position});
  }
  Finish(choice, slice.finish, &outputs->back());
  return absl::OkStatus();
}

// `output`: takes what the parser held back; null if nobody reads it any more.
void Generation::Finish(Choice& choice, FinishReason reason, Output* output) {
  CHECK(!choice.finished) << " choice " << choice.choice << " of prompt " << choice.prompt;
  choice.finished = true;
  --open_choices_;
  CHECK_GE(open_choices_, 0);
  if (output != nullptr) {
    const text::AnswerDelta rest = choice.parser.Finish();
    output->reasoning += rest.reasoning;
    output->content += rest.content;
    choice.reasoning_tokens += rest.reasoning_tokens;
    // What was held back may hold a stop string that no token completed by itself.
    output->finish = choice.parser.ended() ? v1::FINISH_REASON_STOP : reason;
    reason = output->finish;
  }
  context_.metrics.OnFinished(ReasonLabel(reason), context_.clock.Now() - arrival_,
                              choice.position);
}

void Generation::CountTokens(Choice& choice, int count) {
  if (count == 0) return;
  const absl::Time now = context_.clock.Now();
  if (choice.last_token_at == absl::InfinitePast()) {
    context_.metrics.OnFirstToken(now - arrival_);
  } else {
    // Tokens that were read together came apart; their mean is the best guess at when.
    const absl::Duration each = (now - choice.last_token_at) / count;
    for (int i = 0; i < count; ++i) context_.metrics.OnNextToken(each);
  }
  choice.last_token_at = now;
  context_.metrics.OnTokens(count);
}

std::vector<JournalToken> Generation::prompt_logprobs(int prompt) const {
  return prompts_[prompt].stream->prompt_logprobs();
}

UsageCounts Generation::usage() const {
  UsageCounts usage;
  // A prompt counts once, whatever its number of choices, as OpenAI counts it.
  for (const Prompt& prompt : prompts_) {
    usage.prompt_tokens += static_cast<int>(prompt.tokens.size());
    usage.cached_tokens += prompt.stream->cached_tokens();
  }
  // Every token that was read counts, also those that gave no text.
  for (const Choice& choice : choices_) {
    usage.completion_tokens += choice.position;
    usage.reasoning_tokens += choice.reasoning_tokens;
  }
  return usage;
}

}  // namespace epic::coordinator
