#include "text/detokenizer.h"

#include "text/utf8.h"

namespace epic::text {

std::string IncrementalDetokenizer::Push(int32_t token) {
  if (skip_special_ && tokenizer_->IsSpecial(token)) return {};
  std::string_view bytes = tokenizer_->TokenBytes(token);
  if (at_start_ && !bytes.empty()) {
    at_start_ = false;
    if (tokenizer_->strips_leading_space() && bytes[0] == ' ') bytes.remove_prefix(1);
  }
  held_.append(bytes);
  std::string text;
  held_.erase(0, AppendValidUtf8(held_, /*final=*/false, &text));
  return text;
}

std::string IncrementalDetokenizer::Flush() {
  std::string text = LossyUtf8(held_);
  held_.clear();
  return text;
}

}  // namespace epic::text
