#include "coordinator/frontend/openai_logprobs.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "text/utf8.h"

namespace epic::coordinator {
namespace {

// JSON has no infinity, so an impossible token gets vLLM's value.
constexpr double kLogprobMin = -9999;

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

// Code points: every byte that does not continue one begins one.
int64_t CharacterCount(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

Json EmptyPart() {
  return {{"text_offset", Json::array()},
          {"token_logprobs", Json::array()},
          {"tokens", Json::array()},
          {"top_logprobs", Json::array()}};
}

}  // namespace

// A part of a character has no text that JSON could hold, so its bytes are spelled out.
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
  for (const JournalToken& token : tokens) Append(token.token, &token, &answer_text_, &part);
  return part;
}

Json CompletionLogprobs::Prompt(absl::Span<const int32_t> prompt,
                                absl::Span<const JournalToken> scored) {
  Json part = EmptyPart();
  // As the echo is made: special tokens are left out, and a character ends with the prompt.
  text::IncrementalDetokenizer prompt_text(tokenizer_, /*skip_special=*/true);
  for (size_t i = 0; i < prompt.size(); ++i) {
    // Nothing comes before the first token, so nothing predicts it: `scored` begins with the second
    // one.
    Append(prompt[i], i > 0 && i <= scored.size() ? &scored[i - 1] : nullptr, &prompt_text, &part);
  }
  character_count_ += CharacterCount(prompt_text.Flush());
  return part;
}

void CompletionLogprobs::Append(int32_t token, const JournalToken* scored,
                                text::IncrementalDetokenizer* detokenizer, Json* part) {
  const std::string text = TokenText(tokenizer_, token);
  const std::string added = detokenizer->Push(token);
  // What the token adds may begin with what is left of an unfinished character before it.
  const int64_t before =
      added.ends_with(text) ? CharacterCount(added) - CharacterCount(text) : int64_t{0};
  (*part)["text_offset"].push_back(character_count_ + before);
  (*part)["tokens"].push_back(text);
  character_count_ += CharacterCount(added);
  Json top, logprob;
  if (scored != nullptr) {
    logprob = Finite(scored->logprob);
    // OpenAI's shape is an object by text, so tokens with the same text share an entry.
    top = Json::object();
    int listed = 0;
    for (const v1::TokenLogprob& alternative : scored->top) {
      if (listed++ >= alternative_count_) break;
      top[TokenText(tokenizer_, alternative.token_id())] = Finite(alternative.logprob());
    }
    // The token itself is always listed, also where it is not among the likeliest.
    top[text] = Finite(scored->logprob);
  }
  (*part)["token_logprobs"].push_back(std::move(logprob));
  (*part)["top_logprobs"].push_back(std::move(top));
}

}  // namespace epic::coordinator
