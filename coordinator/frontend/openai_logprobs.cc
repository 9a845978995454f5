#include "coordinator/frontend/openai_logprobs.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "text/utf8.h"

namespace epic::coordinator {
namespace {

constexpr double kLogprobMin = -9999;  // JSON has no infinity

double Finite(float logprob) { return std::max<double>(logprob, kLogprobMin); }

Json Bytes(std::string_view bytes) {
  Json list = Json::array();
  for (const char byte : bytes) list.push_back(static_cast<unsigned char>(byte));
  return list;
}

Json Entry(const text::Tokenizer& tokenizer, int32_t token, float logprob) {
  return {{"token", TokenText(tokenizer, token)},
          {"logprob", Finite(logprob)},
          {"bytes", Bytes(tokenizer.TokenBytes(token))}};
}

size_t CharacterCount(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

Json EmptyPart() {
  return {{"text_offset", Json::array()},
          {"token_logprobs", Json::array()},
          {"tokens", Json::array()},
          {"top_logprobs", Json::array()}};
}

}  // namespace

std::string TokenText(const text::Tokenizer& tokenizer, int32_t token) {
  const std::string_view bytes = tokenizer.TokenBytes(token);
  std::string text = text::LossyUtf8(bytes);
  if (text == bytes) return text;
  text = "bytes:";
  for (const char byte : bytes) {
    absl::StrAppendFormat(&text, "\\x%02x", static_cast<unsigned char>(byte));
  }
  return text;
}

Json ChatLogprob(const text::Tokenizer& tokenizer, const JournalToken& token,
                 int alternative_count) {
  Json entry = Entry(tokenizer, token.token, token.logprob);
  Json& top = entry["top_logprobs"] = Json::array();
  for (const v1::TokenLogprob& alternative : token.top) {
    if (static_cast<int>(top.size()) >= alternative_count) break;
    top.push_back(Entry(tokenizer, alternative.token_id(), alternative.logprob()));
  }
  return entry;
}

Json CompletionLogprobs::Next(absl::Span<const JournalToken> tokens) {
  Json part = EmptyPart();
  for (const JournalToken& token : tokens) Append(token.token, &token, &part);
  return part;
}

Json CompletionLogprobs::Prompt(absl::Span<const int32_t> prompt,
                                absl::Span<const JournalToken> scored) {
  Json part = EmptyPart();
  for (size_t i = 0; i < prompt.size(); ++i) {
    Append(prompt[i], i > 0 && i <= scored.size() ? &scored[i - 1] : nullptr, &part);
  }
  return part;
}

void CompletionLogprobs::Append(int32_t token, const JournalToken* scored, Json* part) {
  const std::string text = TokenText(tokenizer_, token);
  (*part)["text_offset"].push_back(offset_);
  (*part)["tokens"].push_back(text);
  offset_ += CharacterCount(text);
  Json top, logprob;
  if (scored != nullptr) {
    logprob = Finite(scored->logprob);
    top = Json::object();
    int listed = 0;
    for (const v1::TokenLogprob& alternative : scored->top) {
      if (listed++ >= alternative_count_) break;
      top[TokenText(tokenizer_, alternative.token_id())] = Finite(alternative.logprob());
    }
    top[text] = Finite(scored->logprob);
  }
  (*part)["token_logprobs"].push_back(std::move(logprob));
  (*part)["top_logprobs"].push_back(std::move(top));
}

}  // namespace epic::coordinator
