// ReasoningParser: splits the tokens of an answer into reasoning and content, while they stream.
//
//   ReasoningParser parser(*tokenizer, prompt_ids, /*skip_special=*/true);
//   for (int32_t token : stream) Send(parser.Push(token));
//   Send(parser.Finish());
//
// The markers are the tokens <think> and </think>. Reasoning is open from the start if the prompt's
// last marker is <think> (R1's template prints it), and over from the start if the prompt ends in
// </think> (V3.1's, without thinking); else the model opens it by <think> before any text but white
// space. It ends at </think>, or with the stream if the model never closes it. Later markers, and
// all text of a tokenizer without these tokens, are content.
//
// Newlines next to the markers belong to neither side: those after <think>, those before </think>
// and those after </think> are dropped (white space before a <think> of the model, too).
// A pure function of prompt and tokens: how calls are grouped changes nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/types/span.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace epic::text {

// One stream, one thread. The tokenizer must outlive it.
class ReasoningParser {
 public:
  struct Piece {
    std::string reasoning;
    std::string content;
    int reasoning_tokens = 0;  // tokens of this piece between the markers, which do not count
  };

  ReasoningParser(const Tokenizer& tokenizer, absl::Span<const int32_t> prompt_ids,
                  bool skip_special);

  Piece Push(int32_t token);
  // The end of the stream: what was held back. Nothing may be pushed after it.
  Piece Finish();

  // Whether the next token counts as reasoning.
  bool in_reasoning() const { return state_ == State::kReasoning; }

 private:
  enum class State { kUndecided, kReasoning, kContent };

  void Add(std::string text, Piece* piece);
  void AddReasoning(std::string_view text, Piece* piece);

  std::optional<int32_t> open_id_, close_id_;
  IncrementalDetokenizer detokenizer_;
  State state_;
  bool drop_newlines_ = false;  // directly after a marker
  std::string held_;            // kUndecided: white space; kReasoning: trailing newlines
};

}  // namespace epic::text
