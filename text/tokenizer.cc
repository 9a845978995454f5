#include "text/tokenizer.h"

#include "base/check.h"
#include "base/status.h"
#include "text/detokenizer.h"
#include "text/rust_abi.h"

namespace epic::text {

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::Load(const std::string& model_folder) {
  ASSIGN_OR_RETURN(EpicTextTokenizer * handle,
                   CallRust<EpicTextTokenizer*>(epic_text_tokenizer_load, Slice(model_folder)));
  return std::shared_ptr<const Tokenizer>(new Tokenizer(handle));
}

Tokenizer::Tokenizer(EpicTextTokenizer* handle) : handle_(handle) {
  CHECK(handle != nullptr);
  // The arrays belong to the handle and never move, so reading a token calls nothing.
  EpicTextTokenizerInfo info;
  epic_text_tokenizer_info(handle, &info);
  bytes_ = info.bytes;
  offsets_ = info.offsets;
  flags_ = absl::MakeConstSpan(info.flags, info.vocab_size);
  CHECK_EQ(offsets_[0], 0u);
  if (info.bos_id >= 0) bos_id_ = info.bos_id;
  if (info.eos_id >= 0) eos_id_ = info.eos_id;
  bos_token_.assign(info.bos_token.data, info.bos_token.len);
  eos_token_.assign(info.eos_token.data, info.eos_token.len);
  strips_leading_space_ = info.strips_leading_space;
}

Tokenizer::~Tokenizer() { epic_text_tokenizer_free(handle_); }

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                                       EncodeOptions options) const {
  ASSIGN_OR_RETURN(EpicTextIds ids,
                   CallRust<EpicTextIds>(epic_text_tokenizer_encode, handle_, Slice(text),
                                         options.add_special_tokens, options.parse_special));
  return Take(ids);
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special) const {
  // Through the detokenizer of streams, so that whole and streamed texts cannot differ.
  IncrementalDetokenizer detokenizer(*this, skip_special);
  std::string text;
  for (int32_t id : ids) text += detokenizer.Push(id);
  return text + detokenizer.Flush();
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (!IsToken(id)) return {};  // a gap, or a padding row that was sampled all the same
  return {bytes_ + offsets_[id], offsets_[id + 1] - offsets_[id]};
}

std::optional<int32_t> Tokenizer::TokenId(std::string_view content) const {
  const int32_t id = epic_text_tokenizer_id(handle_, Slice(content));
  if (id < 0) return std::nullopt;
  return id;
}

}  // namespace epic::text
