#include "text/answer_parser.h"

#include <utility>

#include "base/check.h"

namespace epic::text {
namespace {

constexpr std::string_view kSpace = " \t\r\n";

enum class PromptEnd { kNoMarker, kOpen, kClosed };

// Which marker the answer starts under. A </think> with text behind it closes an earlier turn, so
// it says nothing about this answer; a <think> stays open however much text follows.
PromptEnd FindPromptEnd(const Tokenizer& tokenizer, absl::Span<const int32_t> prompt_ids,
                        int32_t open_id, int32_t close_id) {
  bool only_space_follows = true;
  for (auto id = prompt_ids.rbegin(); id != prompt_ids.rend(); ++id) {
    if (*id == open_id) return PromptEnd::kOpen;
    if (*id == close_id) return only_space_follows ? PromptEnd::kClosed : PromptEnd::kNoMarker;
    // Behind the first text only ids are compared: prompts are long, and the core asks too.
    only_space_follows = only_space_follows && tokenizer.TokenBytes(*id).find_first_not_of(
                                                   kSpace) == std::string_view::npos;
  }
  return PromptEnd::kNoMarker;
}

}  // namespace

AnswerParser::AnswerParser(const Tokenizer& tokenizer, absl::Span<const int32_t> prompt_ids,
                           const AnswerFormat& format)
    : detokenizer_(tokenizer, format.skip_special), stop_(format.stop) {
  if (!format.split_reasoning) return;
  open_id_ = tokenizer.TokenId("<think>");
  close_id_ = tokenizer.TokenId("</think>");
  if (!open_id_ || !close_id_) return;
  const PromptEnd end = FindPromptEnd(tokenizer, prompt_ids, *open_id_, *close_id_);
  if (end == PromptEnd::kOpen) state_ = State::kReasoning;
  if (end == PromptEnd::kNoMarker) state_ = State::kUndecided;
  drop_newlines_ = end != PromptEnd::kNoMarker;
}

AnswerDelta AnswerParser::Push(int32_t token) {
  CHECK(!finished_) << "token " << token << " after Finish";
  AnswerDelta delta;
  if (ended()) return delta;
  if (state_ == State::kUndecided && token == open_id_) {
    held_.clear();
    state_ = State::kReasoning;
    drop_newlines_ = true;
  } else if (state_ == State::kReasoning && token == close_id_) {
    // A character that the reasoning began and did not finish must not leak into the content.
    Add(detokenizer_.Flush(), &delta);
    held_.clear();
    state_ = State::kContent;
    drop_newlines_ = true;
  } else {
    if (state_ == State::kReasoning) delta.reasoning_tokens = 1;
    Add(detokenizer_.Push(token), &delta);
  }
  return delta;
}

AnswerDelta AnswerParser::Finish() {
  CHECK(!std::exchange(finished_, true)) << "Finish twice";
  AnswerDelta delta;
  Add(detokenizer_.Flush(), &delta);
  // No marker comes any more, so what waited for one belongs to the part that is open.
  const std::string held = std::exchange(held_, "");
  if (state_ == State::kReasoning) {
    delta.reasoning += held;
  } else {
    delta.content += stop_.Push(held);
  }
  delta.content += stop_.Flush();
  return delta;
}

void AnswerParser::Add(std::string text, AnswerDelta* delta) {
  if (drop_newlines_) {
    text.erase(0, text.find_first_not_of('\n'));
    if (text.empty()) return;
    drop_newlines_ = false;
  }
  if (state_ == State::kReasoning) return AddReasoning(text, delta);
  if (state_ == State::kUndecided) {
    // White space may still turn out to stand before the model's own <think>, which drops it.
    held_ += text;
    if (held_.find_first_not_of(kSpace) == std::string::npos) return;
    text = std::exchange(held_, "");
    state_ = State::kContent;
  }
  delta->content += stop_.Push(text);
}

// Trailing newlines wait: </think> may follow, and then they belong to nobody.
void AnswerParser::AddReasoning(std::string_view text, AnswerDelta* delta) {
  const size_t end = text.find_last_not_of('\n') + 1;
  if (end > 0) {
    delta->reasoning += std::exchange(held_, "");
    delta->reasoning += text.substr(0, end);
  }
  held_ += text.substr(end);
}

}  // namespace epic::text
