// AnswerParser: turns the tokens of an answer into what a client reads (reasoning and content), and
// tells when a stop string has ended the answer. It is the only place that knows either rule: the
// core asks it whether a sequence has ended, and the frontends print its deltas.
//
//   AnswerParser parser(*tokenizer, prompt_ids, {.stop = {"\n\n"}});
//   for (int32_t token : stream) {
//     Send(parser.Push(token));
//     if (parser.ended()) break;
//   }
//   Send(parser.Finish());
//
// Reasoning. The markers are the tokens <think> and </think>. Reasoning is open from the start if
// the prompt's last marker is <think> (R1's template prints it), and over from the start if the
// prompt ends in </think> (V3.1's, without thinking); else the model opens it by <think> before any
// text but white space. It ends at </think>, or with the stream if the model never closes it. Later
// markers, and all text of a tokenizer without these tokens, are content.
// Newlines next to the markers belong to neither side: those after <think>, those before </think>
// and those after </think> are dropped (white space before a <think> of the model, too).
//
// Stop strings look at the content alone: never at reasoning, nor at the markers and newlines that
// are dropped. Where reasoning is not split off, all text is content. The answer ends with the
// token that completes a stop string; the content ends before that string.
//
// The parser is a pure function of prompt, tokens and format, so two parsers of the same answer
// agree on every delta and on the token that ends it. A tool call will be a third kind of delta.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "text/detokenizer.h"
#include "text/stop_strings.h"
#include "text/tokenizer.h"

namespace epic::text {

// How the tokens of an answer become text, and which texts end it.
struct AnswerFormat {
  bool split_reasoning = true;    // false: all text is content, markers too
  bool skip_special = true;       // special tokens give no text
  std::vector<std::string> stop;  // looked for in the content; empty strings are ignored
};

// What one token adds to the answer.
struct AnswerDelta {
  std::string reasoning;
  std::string content;
  int reasoning_tokens = 0;  // tokens between the markers; the markers do not count
};

// One answer, one thread. The tokenizer must outlive the parser.
class AnswerParser {
 public:
  AnswerParser(const Tokenizer& tokenizer, absl::Span<const int32_t> prompt_ids,
               const AnswerFormat& format);

  // After the end: nothing.
  AnswerDelta Push(int32_t token);
  // The end of the stream: what was held back. Nothing may be pushed after it.
  AnswerDelta Finish();

  // Whether a stop string is complete.
  bool ended() const { return stop_.matched().has_value(); }
  // Whether the next token counts as reasoning.
  bool in_reasoning() const { return state_ == State::kReasoning; }

 private:
  enum class State { kUndecided, kReasoning, kContent };

  void Add(std::string text, AnswerDelta* delta);
  void AddReasoning(std::string_view text, AnswerDelta* delta);

  std::optional<int32_t> open_id_, close_id_;
  IncrementalDetokenizer detokenizer_;
  StopStrings stop_;
  State state_ = State::kContent;
  bool drop_newlines_ = false;  // directly after a marker
  bool finished_ = false;
  std::string held_;  // kUndecided: white space; kReasoning: trailing newlines
};

}  // namespace epic::text
