// OutputRenderer: from tokens to what a client reads: reasoning, text, and nothing of what follows
// a stop string.
//
// A pure function of prompt and tokens: how they are grouped, and when they come, changes nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "text/detokenizer.h"
#include "text/reasoning_parser.h"
#include "text/stop_strings.h"
#include "text/tokenizer.h"

namespace epic::coordinator {

struct RenderOptions {
  bool split_reasoning = true;  // else all is text
  bool skip_special = true;
};

// One choice, one thread. The tokenizer outlives it.
class OutputRenderer {
 public:
  struct Piece {
    std::string reasoning;
    std::string text;
    int reasoning_tokens = 0;
  };

  OutputRenderer(const text::Tokenizer& tokenizer, absl::Span<const int32_t> prompt,
                 std::vector<std::string> stop, RenderOptions options);

  Piece Push(int32_t token);
  // The end of the tokens: what was held back. Nothing may be pushed after it.
  Piece Finish();
  // Whether a stop string was found; there is no more text from then on.
  bool stopped() const { return reasoning_stop_.matched() || text_stop_.matched(); }

 private:
  Piece Cut(text::ReasoningParser::Piece parsed);

  std::optional<text::ReasoningParser> parser_;  // one of these two
  std::optional<text::IncrementalDetokenizer> plain_;
  text::StopStrings reasoning_stop_;
  text::StopStrings text_stop_;
};

}  // namespace epic::coordinator
