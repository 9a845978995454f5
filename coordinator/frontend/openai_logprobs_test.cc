#include "coordinator/frontend/openai_logprobs.h"

#include <gtest/gtest.h>

#include <memory>

namespace epic::coordinator {
namespace {

// The text from a character on.
std::string From(const std::string& text, int64_t offset) {
  size_t byte = 0;
  for (; offset > 0 && byte < text.size(); --offset) {
    do {
      ++byte;
    } while (byte < text.size() && (text[byte] & 0xc0) == 0x80);
  }
  return offset > 0 ? "beyond the end" : text.substr(byte);
}

class OpenAiLogprobsTest : public ::testing::Test {
 protected:
  std::vector<int32_t> Ids(const std::string& text) const {
    return *tokenizer_->Encode(text, {.parse_special = true});
  }

  // Every token whose text is in `text` stands where its offset says.
  void ExpectPlaces(const Json& part, const std::string& text) {
    for (size_t i = 0; i < part["tokens"].size(); ++i) {
      const std::string token = part["tokens"][i];
      const std::string rest = From(text, part["text_offset"][i]);
      EXPECT_NE(rest, "beyond the end") << token;
      if (text.find(token) != text.npos) {
        EXPECT_TRUE(rest.starts_with(token)) << token << " at " << part["text_offset"][i];
      }
    }
  }

  std::shared_ptr<const text::Tokenizer> tokenizer_ = *text::Tokenizer::Load("models/tiny-r1");
};

TEST_F(OpenAiLogprobsTest, OffsetsCountCharactersOfTheText) {
  const std::vector<int32_t> prompt = Ids("<｜begin▁of▁sentence｜>a😀b is c");
  const std::vector<int32_t> answer = Ids("x 日本😀<｜end▁of▁sentence｜>y");
  std::vector<JournalToken> tokens;
  for (const int32_t token : answer) tokens.push_back({.token = token});
  for (const bool skip_special : {true, false}) {
    const std::string echo = tokenizer_->Decode(prompt, true);
    const std::string text = echo + tokenizer_->Decode(answer, skip_special);
    CompletionLogprobs whole(*tokenizer_, 0, skip_special);
    const Json first = whole.Prompt(prompt, {});
    const Json second = whole.Next(tokens);
    ExpectPlaces(first, text);
    ExpectPlaces(second, text);
    EXPECT_EQ(first["text_offset"][0], 0);
    EXPECT_EQ(first["text_offset"][1], 0) << "the begin of sentence takes no room";
    EXPECT_EQ(From(text, second["text_offset"][0]), text.substr(echo.size()));
    // Without an echo the answer begins the text, and streams say the same token by token.
    CompletionLogprobs alone(*tokenizer_, 0, skip_special), streamed(*tokenizer_, 0, skip_special);
    const Json offsets = alone.Next(tokens)["text_offset"];
    EXPECT_EQ(offsets[0], 0);
    for (size_t i = 0; i < tokens.size(); ++i) {
      EXPECT_EQ(streamed.Next({&tokens[i], 1})["text_offset"][0], offsets[i]);
    }
  }
}

TEST_F(OpenAiLogprobsTest, AnUnfinishedCharacterTakesItsPlaceholdersRoom) {
  const int32_t half = *tokenizer_->TokenId("ð");
  const std::vector<int32_t> ids = {Ids("a")[0], half, Ids("b")[0]};
  CompletionLogprobs logprobs(*tokenizer_, 0, true);
  const Json part = logprobs.Prompt(ids, {});
  EXPECT_EQ(tokenizer_->Decode(ids, true),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(part["text_offset"], Json({0, 1, 2}));
}

}  // namespace
}  // namespace epic::coordinator
