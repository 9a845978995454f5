// IncrementalDetokenizer: the text of a token stream, token by token, never half a character.
//
//   IncrementalDetokenizer detokenizer(*tokenizer, /*skip_special=*/true);
//   for (int32_t token : stream) Send(detokenizer.Push(token));
//   Send(detokenizer.Flush());
//
// A pure function of the tokens: what all calls return, joined, is Tokenizer::Decode of the tokens.
#pragma once

#include <cstdint>
#include <string>

#include "text/tokenizer.h"

namespace epic::text {

// One stream, one thread. The tokenizer must outlive it.
class IncrementalDetokenizer {
 public:
  IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  // What the token completes: valid UTF-8, often "". At most 3 bytes are held back.
  std::string Push(int32_t token);
  // The end of the stream, or of a part of it: a character begun but not finished gives U+FFFD.
  std::string Flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  bool at_start_ = true;
  std::string held_;  // the start of a character
};

}  // namespace epic::text
