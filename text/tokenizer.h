// Tokenizer: text to token ids and back, exactly as the tokenizer files of a Hugging Face folder
// say.
//
//   ASSIGN_OR_RETURN(auto tokenizer, Tokenizer::Load("models/tiny-r1"));
//   ASSIGN_OR_RETURN(auto ids, tokenizer->Encode("Hello", {.add_special_tokens = true}));
//   std::string text = tokenizer->Decode(ids, /*skip_special=*/true);
//
// Files: tokenizer.json (any pipeline of the `tokenizers` library whose decoder works on bytes:
// ByteLevel, or Replace/ByteFallback/Fuse/Strip and Metaspace), else tiktoken.model (Kimi,
// Moonlight); tokenizer_config.json beside them for the special tokens and add_bos_token.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

struct EpicTextTokenizer;

namespace epic::text {

struct EncodeOptions {
  // Adds what the files add around a plain text: begin-of-sentence for DeepSeek, nothing for Kimi.
  bool add_special_tokens = false;
  // Reads added tokens written out in the text ("<think>", "<｜User｜>") as those tokens. Off, the
  // text is text: no id for which IsAdded() holds comes out of it (except an added token of one
  // single character, which is ordinary text).
  bool parse_special = false;
};

// Immutable after Load, so any thread may call anything.
class Tokenizer {
 public:
  // NotFound: no tokenizer file in the folder. InvalidArgument: a file that cannot be read,
  // naming it and why.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> Load(const std::string& model_folder);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Bytes that are not UTF-8 count as U+FFFD. Internal: the text defeats the pattern of the files
  // (a limit of the regular-expression engine).
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              EncodeOptions options = {}) const;

  // Always valid UTF-8 (see text/utf8.h). Ids outside the vocabulary give no text.
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special) const;

  // The bytes that the id stands for, perhaps half a character; "" outside the vocabulary.
  std::string_view TokenBytes(int32_t id) const;

  // An added token marked special: skip_special drops it. "<think>" usually is not.
  bool IsSpecial(int32_t id) const { return HasFlag(id, kSpecial); }
  // Any added token, special or not: what user text must never become.
  bool IsAdded(int32_t id) const { return HasFlag(id, kAdded); }
  // Whether the id names a token at all; padding rows of the embedding and gaps do not.
  bool IsToken(int32_t id) const { return HasFlag(id, kExists); }

  // The id of an added token, or of an entry as the vocabulary writes it.
  std::optional<int32_t> TokenId(std::string_view content) const;

  // One more than the largest id. The model's vocab_size may be larger (padding rows).
  int32_t vocab_size() const { return static_cast<int32_t>(flags_.size()); }
  std::optional<int32_t> bos_id() const { return bos_id_; }
  std::optional<int32_t> eos_id() const { return eos_id_; }
  // Contents of bos_id and eos_id as templates print them; "" if there is none.
  const std::string& bos_token() const { return bos_token_; }
  const std::string& eos_token() const { return eos_token_; }

  // Whether decoding drops one space at the start of the text (SentencePiece-style vocabularies).
  bool strips_leading_space() const { return strips_leading_space_; }

  // For the other parts of text/.
  const EpicTextTokenizer* handle() const { return handle_; }

 private:
  static constexpr uint8_t kExists = 1, kAdded = 2, kSpecial = 4;

  explicit Tokenizer(EpicTextTokenizer* handle);
  bool HasFlag(int32_t id, uint8_t flag) const {
    return id >= 0 && id < vocab_size() && (flags_[id] & flag) != 0;
  }

  EpicTextTokenizer* handle_ = nullptr;  // owned
  const char* bytes_;                    // of all tokens, one after another; the handle's, as are:
  const uint32_t* offsets_;              // [vocab_size + 1] into bytes_
  absl::Span<const uint8_t> flags_;      // [vocab_size]
  std::optional<int32_t> bos_id_, eos_id_;
  std::string bos_token_, eos_token_;
  bool strips_leading_space_ = false;
};

}  // namespace epic::text
