#include "text/detokenizer.h"

#include <random>

#include "gtest/gtest.h"
#include "text/utf8.h"

namespace epic::text {
namespace {

const std::string kReplacement = "\xEF\xBF\xBD";

bool IsUtf8(const std::string& text) { return LossyUtf8(text) == text; }

std::shared_ptr<const Tokenizer> Tiny() { return *Tokenizer::Load("models/tiny-r1"); }

TEST(Utf8Test, ReplacesEachMaximalInvalidSubpart) {
  EXPECT_EQ(LossyUtf8("aé日😀"), "aé日😀");
  EXPECT_EQ(LossyUtf8("\xF0\x9F\x98"), kReplacement);
  EXPECT_EQ(LossyUtf8("\xF0\x9Fx"), kReplacement + "x");
  EXPECT_EQ(LossyUtf8("\xC0\x80"), kReplacement + kReplacement);
  EXPECT_EQ(LossyUtf8("\xED\xA0\x80"), kReplacement + kReplacement + kReplacement);
  EXPECT_EQ(LossyUtf8("\xF4\x90\x80\x80"),
            kReplacement + kReplacement + kReplacement + kReplacement);
  EXPECT_EQ(LossyUtf8("\xE0\x9F\xBF"), kReplacement + kReplacement + kReplacement);
  EXPECT_EQ(LossyUtf8("\xFF\xFE"), kReplacement + kReplacement);
}

TEST(Utf8Test, AnySplitReadsTheSame) {
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes(random() % 12, '\0');
    const std::string interesting = "a\x80\xBF\xC2\xE0\xA0\xED\x9F\xF0\x90\xF4\x8F\xFF";
    for (char& byte : bytes) byte = interesting[random() % interesting.size()];
    std::string joined, held;
    for (char byte : bytes) {
      held += byte;
      held.erase(0, AppendValidUtf8(held, false, &joined));
      EXPECT_LE(held.size(), 3u);
      EXPECT_TRUE(IsUtf8(joined));
    }
    AppendValidUtf8(held, true, &joined);
    EXPECT_EQ(joined, LossyUtf8(bytes));
  }
}

TEST(IncrementalDetokenizerTest, HoldsBackHalfCharacters) {
  const auto tokenizer = Tiny();
  IncrementalDetokenizer detokenizer(*tokenizer, true);
  const int32_t bytes[] = {*tokenizer->TokenId("ð"), *tokenizer->TokenId("Ł"),
                           *tokenizer->TokenId("ĺ"), *tokenizer->TokenId("Ģ")};
  EXPECT_EQ(detokenizer.Push(bytes[0]), "");
  EXPECT_EQ(detokenizer.Push(bytes[1]), "");
  EXPECT_EQ(detokenizer.Push(bytes[2]), "");
  EXPECT_EQ(detokenizer.Push(bytes[3]), "😀");
  EXPECT_EQ(detokenizer.Push(bytes[0]), "");
  EXPECT_EQ(detokenizer.Flush(), kReplacement);
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(IncrementalDetokenizerTest, AnyTokensJoinToTheirDecoding) {
  const auto tokenizer = Tiny();
  std::mt19937 random(4);
  for (int round = 0; round < 1000; ++round) {
    const bool skip_special = random() % 2;
    std::vector<int32_t> ids(random() % 20);
    for (int32_t& id : ids) {
      id = static_cast<int32_t>(random() % (tokenizer->vocab_size() + 5)) - 2;
    }
    IncrementalDetokenizer detokenizer(*tokenizer, skip_special);
    std::string joined;
    for (int32_t id : ids) {
      joined += detokenizer.Push(id);
      EXPECT_TRUE(IsUtf8(joined));
    }
    EXPECT_EQ(joined + detokenizer.Flush(), tokenizer->Decode(ids, skip_special));
  }
}

TEST(IncrementalDetokenizerTest, SpecialTokensGiveTextOnlyOnDemand) {
  const auto tokenizer = Tiny();
  const int32_t eos = *tokenizer->eos_id(), think = *tokenizer->TokenId("<think>");
  EXPECT_EQ(IncrementalDetokenizer(*tokenizer, true).Push(eos), "");
  EXPECT_EQ(IncrementalDetokenizer(*tokenizer, false).Push(eos), "<｜end▁of▁sentence｜>");
  EXPECT_EQ(IncrementalDetokenizer(*tokenizer, true).Push(think), "<think>");
}

}  // namespace
}  // namespace epic::text
