// Log-probabilities in OpenAI's two shapes.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "coordinator/frontend/json_fields.h"
#include "coordinator/request.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace epic::coordinator {

// The token as text, or "bytes:\xe2\x80" for one that is part of a character.
std::string TokenText(const text::Tokenizer& tokenizer, int32_t token);

// Chat: one element of logprobs.content. `alternative_count`: how many of token.top to list.
Json ChatLogprob(const text::Tokenizer& tokenizer, const JournalToken& token,
                 int alternative_count);

// Completions: the "logprobs" objects of one choice, part after part.
class CompletionLogprobs {
 public:
  // `skip_special`: whether special tokens are left out of the choice's text.
  CompletionLogprobs(const text::Tokenizer& tokenizer, int alternative_count, bool skip_special)
      : tokenizer_(tokenizer),
        alternative_count_(alternative_count),
        answer_text_(tokenizer, skip_special) {}

  // {"text_offset":[…],"token_logprobs":[…],"tokens":[…],"top_logprobs":[…]} of the next tokens.
  // An offset counts the characters of the choice's text before the token. A token that is not in
  // the text (a special one, a part of a character) has the offset of what follows it there.
  Json Next(absl::Span<const JournalToken> tokens);
  // The same of an echoed prompt, whose first token has no log-probability. `scored` has those of
  // the other tokens, or is empty if they have none.
  Json Prompt(absl::Span<const int32_t> prompt, absl::Span<const JournalToken> scored);

 private:
  // `detokenizer` gives what the choice's text has of the token.
  void Append(int32_t token, const JournalToken* scored, text::IncrementalDetokenizer* detokenizer,
              Json* part);

  const text::Tokenizer& tokenizer_;
  int alternative_count_;
  text::IncrementalDetokenizer answer_text_;
  int64_t character_count_ = 0;  // of the choice's text so far
};

}  // namespace epic::coordinator
