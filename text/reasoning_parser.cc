#include "text/reasoning_parser.h"

#include <algorithm>
#include <utility>

namespace epic::text {
namespace {

constexpr std::string_view kSpace = " \t\r\n";

enum class PromptEnd { kNoMarker, kOpen, kClosed };

// Which marker the answer starts under. One followed by text is of an earlier turn if it closes.
PromptEnd FindPromptEnd(const Tokenizer& tokenizer, absl::Span<const int32_t> prompt_ids,
                        int32_t open_id, int32_t close_id) {
  bool only_space_follows = true;
  for (auto id = prompt_ids.rbegin(); id != prompt_ids.rend(); ++id) {
    if (*id == open_id) return PromptEnd::kOpen;
    if (*id == close_id) return only_space_follows ? PromptEnd::kClosed : PromptEnd::kNoMarker;
    only_space_follows &=
        tokenizer.TokenBytes(*id).find_first_not_of(kSpace) == std::string_view::npos;
  }
  return PromptEnd::kNoMarker;
}

}  // namespace

ReasoningParser::ReasoningParser(const Tokenizer& tokenizer, absl::Span<const int32_t> prompt_ids,
                                 bool skip_special)
    : open_id_(tokenizer.TokenId("<think>")),
      close_id_(tokenizer.TokenId("</think>")),
      detokenizer_(tokenizer, skip_special),
      state_(State::kUndecided) {
  if (!open_id_ || !close_id_) {
    state_ = State::kContent;
    return;
  }
  const PromptEnd end = FindPromptEnd(tokenizer, prompt_ids, *open_id_, *close_id_);
  if (end == PromptEnd::kOpen) state_ = State::kReasoning;
  if (end == PromptEnd::kClosed) state_ = State::kContent;
  drop_newlines_ = end != PromptEnd::kNoMarker;
}

ReasoningParser::Piece ReasoningParser::Push(int32_t token) {
  Piece piece;
  if (state_ == State::kUndecided && token == open_id_) {
    held_.clear();
    state_ = State::kReasoning;
    drop_newlines_ = true;
  } else if (state_ == State::kReasoning && token == close_id_) {
    Add(detokenizer_.Flush(), &piece);
    held_.clear();
    state_ = State::kContent;
    drop_newlines_ = true;
  } else {
    if (state_ == State::kReasoning) piece.reasoning_tokens = 1;
    Add(detokenizer_.Push(token), &piece);
  }
  return piece;
}

ReasoningParser::Piece ReasoningParser::Finish() {
  Piece piece;
  Add(detokenizer_.Flush(), &piece);
  (state_ == State::kReasoning ? piece.reasoning : piece.content) += held_;
  held_.clear();
  return piece;
}

void ReasoningParser::Add(std::string text, Piece* piece) {
  if (drop_newlines_) {
    text.erase(0, text.find_first_not_of('\n'));
    if (text.empty()) return;
    drop_newlines_ = false;
  }
  if (state_ == State::kReasoning) return AddReasoning(text, piece);
  if (state_ == State::kUndecided) {
    held_ += text;
    if (held_.find_first_not_of(kSpace) == std::string::npos) return;
    text = std::exchange(held_, "");
    state_ = State::kContent;
  }
  piece->content += text;
}

void ReasoningParser::AddReasoning(std::string_view text, Piece* piece) {
  const size_t end = text.find_last_not_of('\n') + 1;
  if (end > 0) {
    piece->reasoning += std::exchange(held_, "");
    piece->reasoning += text.substr(0, end);
  }
  held_ += text.substr(end);
}

}  // namespace epic::text
