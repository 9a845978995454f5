// The C ABI of text/rust (src/*.rs say what each function does), and what turns its results into
// C++ ones. For the sources of text/ only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct EpicTextTokenizer;
struct EpicTextTemplate;
struct EpicTextVocabulary;
struct EpicTextMatcher;

extern "C" {

struct EpicTextSlice {
  const char* data;
  size_t len;
};
struct EpicTextBytes {
  char* data;
  size_t len, capacity;
};
struct EpicTextIds {
  int32_t* data;
  size_t len, capacity;
};
struct EpicTextTokenizerInfo {
  const char* bytes;
  const uint32_t* offsets;
  const uint8_t* flags;
  size_t vocab_size;
  int32_t bos_id, eos_id;
  EpicTextSlice bos_token, eos_token;
  bool strips_leading_space;
};

// Functions that return int give 0 and fill `out`, or an absl::StatusCode and fill `error`.
void epic_text_free_bytes(EpicTextBytes bytes);
void epic_text_free_ids(EpicTextIds ids);

int epic_text_tokenizer_load(EpicTextSlice folder, EpicTextTokenizer** out, EpicTextBytes* error);
void epic_text_tokenizer_free(EpicTextTokenizer* tokenizer);
void epic_text_tokenizer_info(const EpicTextTokenizer* tokenizer, EpicTextTokenizerInfo* out);
int32_t epic_text_tokenizer_id(const EpicTextTokenizer* tokenizer, EpicTextSlice content);
int epic_text_tokenizer_encode(const EpicTextTokenizer* tokenizer, EpicTextSlice text,
                               bool add_special_tokens, bool parse_special, EpicTextIds* out,
                               EpicTextBytes* error);

int epic_text_template_load(EpicTextSlice folder, uint64_t fuel, size_t text_bytes_max,
                            EpicTextTemplate** out, EpicTextBytes* error);
void epic_text_template_free(EpicTextTemplate* chat_template);
int epic_text_template_render(const EpicTextTemplate* chat_template, EpicTextSlice request,
                              EpicTextBytes* out, EpicTextBytes* error);
int epic_text_template_render_ids(const EpicTextTemplate* chat_template,
                                  const EpicTextTokenizer* tokenizer, EpicTextSlice request,
                                  EpicTextIds* out, EpicTextBytes* error);

int epic_text_vocabulary_new(const EpicTextTokenizer* tokenizer, size_t vocab_size,
                             const uint32_t* end_ids, size_t end_id_count, EpicTextVocabulary** out,
                             EpicTextBytes* error);
void epic_text_vocabulary_free(EpicTextVocabulary* vocabulary);
int epic_text_matcher_new(const EpicTextVocabulary* vocabulary, int32_t kind, EpicTextSlice grammar,
                          EpicTextMatcher** out, EpicTextBytes* error);
void epic_text_matcher_free(EpicTextMatcher* matcher);
int epic_text_matcher_mask(EpicTextMatcher* matcher, uint32_t* words, size_t word_count, bool* out,
                           EpicTextBytes* error);
int epic_text_matcher_consume(EpicTextMatcher* matcher, uint32_t token, bool* out,
                              EpicTextBytes* error);
int epic_text_matcher_rollback(EpicTextMatcher* matcher, size_t token_count, bool* out,
                               EpicTextBytes* error);
int epic_text_matcher_forced(EpicTextMatcher* matcher, EpicTextIds* out, EpicTextBytes* error);
int epic_text_matcher_is_accepting(EpicTextMatcher* matcher, bool* out, EpicTextBytes* error);
bool epic_text_matcher_is_stopped(const EpicTextMatcher* matcher);
}

namespace epic::text {

inline EpicTextSlice Slice(std::string_view text) { return {text.data(), text.size()}; }

inline std::string Take(EpicTextBytes bytes) {
  std::string text(bytes.data, bytes.len);
  epic_text_free_bytes(bytes);
  return text;
}

inline std::vector<int32_t> Take(EpicTextIds ids) {
  std::vector<int32_t> vector(ids.data, ids.data + ids.len);
  epic_text_free_ids(ids);
  return vector;
}

// Calls function(arguments…, &out, &error).
template <typename T, typename Function, typename... Arguments>
absl::StatusOr<T> CallRust(Function function, Arguments... arguments) {
  T out{};
  EpicTextBytes error{};
  const int code = function(arguments..., &out, &error);
  if (code == 0) return out;
  return absl::Status(static_cast<absl::StatusCode>(code), Take(error));
}

}  // namespace epic::text
