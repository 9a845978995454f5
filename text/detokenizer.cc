#include "text/detokenizer.h"

#include "base/check.h"
#include "text/utf8.h"

namespace epic::text {

std::string IncrementalDetokenizer::Push(int32_t token) {
  // A special token between two halves of a character does not end the character: the bytes of
  // the text are joined as if the special token were not there.
  if (skip_special_ && tokenizer_->IsSpecial(token)) return {};
  std::string_view bytes = tokenizer_->TokenBytes(token);
  // Only the first token that has text: the space is what the tokenizer put before the first word.
  if (at_start_ && !bytes.empty()) {
    at_start_ = false;
    if (tokenizer_->strips_leading_space() && bytes[0] == ' ') bytes.remove_prefix(1);
  }
  held_.append(bytes);
  std::string text;
  held_.erase(0, AppendValidUtf8(held_, /*final=*/false, &text));
  CHECK_LE(held_.size(), size_t{3});  // the longest start of a character
  return text;
}

std::string IncrementalDetokenizer::Flush() {
  std::string text = LossyUtf8(held_);
  held_.clear();
  return text;
}

}  // namespace epic::text
