#include "text/grammar.h"

#include <nlohmann/json.hpp>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::text {
namespace {

using ::testing::HasSubstr;

class GrammarTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto vocabulary = GrammarVocabulary::Create(*tokenizer_, kVocabSize, {eos_});
    ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
    vocabulary_ = *vocabulary;
  }

  std::unique_ptr<GrammarMatcher> Compile(GrammarKind kind, std::string_view grammar) {
    auto matcher = vocabulary_->Compile(kind, grammar);
    EXPECT_TRUE(matcher.ok()) << matcher.status();
    return *std::move(matcher);
  }

  std::vector<int32_t> Allowed(GrammarMatcher& matcher) {
    std::vector<uint32_t> mask(vocabulary_->mask_words());
    EXPECT_TRUE(matcher.ComputeMask(absl::MakeSpan(mask)).ok());
    std::vector<int32_t> allowed;
    for (int32_t id = 0; id < static_cast<int32_t>(mask.size() * 32); ++id) {
      if (mask[id / 32] >> (id % 32) & 1) allowed.push_back(id);
    }
    return allowed;
  }

  // Samples uniformly among what is allowed, at most `token_count_max` tokens.
  std::string Sample(GrammarMatcher& matcher, std::mt19937& random, int token_count_max) {
    std::vector<int32_t> ids;
    while (!matcher.IsStopped() && static_cast<int>(ids.size()) < token_count_max) {
      const std::vector<int32_t> allowed = Allowed(matcher);
      EXPECT_FALSE(allowed.empty());
      const int32_t id = allowed[random() % allowed.size()];
      EXPECT_TRUE(matcher.Consume(id).ok());
      ids.push_back(id);
    }
    return tokenizer_->Decode(ids, true);
  }

  static constexpr int32_t kVocabSize = 1056;  // padded, as models pad theirs
  std::shared_ptr<const Tokenizer> tokenizer_ = *Tokenizer::Load("models/tiny-r1");
  int32_t eos_ = *tokenizer_->eos_id();
  std::shared_ptr<const GrammarVocabulary> vocabulary_;
};

TEST_F(GrammarTest, JsonSchemaAnswersAreJson) {
  const std::string schema = R"({"type": "object", "additionalProperties": false,
      "required": ["n", "ok"], "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 99},
      "ok": {"enum": ["yes", "no"]}, "tags": {"type": "array", "maxItems": 1,
      "items": {"type": "string", "maxLength": 3}}}})";
  std::mt19937 random(8);
  int complete = 0;
  for (int round = 0; round < 20; ++round) {
    const auto matcher = Compile(GrammarKind::kJsonSchema, schema);
    const std::string text = Sample(*matcher, random, 300);
    if (!*matcher->IsAccepting()) continue;
    ++complete;
    const auto answer = nlohmann::json::parse(text, nullptr, false);
    ASSERT_TRUE(answer.is_object()) << text;
    EXPECT_GE(answer["n"], 3);
    EXPECT_LE(answer["n"], 99);
    EXPECT_TRUE(answer["ok"] == "yes" || answer["ok"] == "no") << text;
  }
  EXPECT_GT(complete, 0);
}

TEST_F(GrammarTest, RegexAllowsExactlyWhatContinuesIt) {
  const auto matcher = Compile(GrammarKind::kRegex, "(ab)+c?");
  const auto id = [&](const char* content) { return *tokenizer_->TokenId(content); };
  for (int32_t allowed : Allowed(*matcher)) {
    const std::string_view bytes = tokenizer_->TokenBytes(allowed);
    EXPECT_TRUE(bytes.starts_with("a")) << bytes;
  }
  EXPECT_FALSE(*matcher->IsAccepting());
  EXPECT_TRUE(matcher->Consume(id("a")).ok());
  EXPECT_EQ(matcher->Consume(id("a")).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(matcher->Consume(id("b")).ok());
  EXPECT_TRUE(*matcher->IsAccepting());
  EXPECT_THAT(Allowed(*matcher), ::testing::Contains(eos_));
  EXPECT_FALSE(matcher->IsStopped());
  EXPECT_TRUE(matcher->Consume(eos_).ok());
  EXPECT_TRUE(matcher->IsStopped());
  EXPECT_THAT(Allowed(*matcher), ::testing::ElementsAre(eos_));
}

TEST_F(GrammarTest, LarkGrammarsWork) {
  const auto matcher = Compile(GrammarKind::kLark, "start: \"x\" (\"=\" | \"<\") /[0-9]/");
  std::mt19937 random(9);
  const std::string text = Sample(*matcher, random, 10);
  EXPECT_THAT(text, ::testing::MatchesRegex("x[=<][0-9]"));
}

TEST_F(GrammarTest, MarkersAndPaddingAreNeverAllowed) {
  const auto matcher = Compile(GrammarKind::kRegex, "(.|\n)*");
  for (int32_t id : Allowed(*matcher)) {
    EXPECT_LT(id, tokenizer_->vocab_size());
    EXPECT_TRUE(!tokenizer_->IsAdded(id) || id == eos_) << tokenizer_->TokenBytes(id);
  }
}

TEST_F(GrammarTest, RollbackRestoresTheMask) {
  const std::string schema = R"({"type": "array", "items": {"type": "integer"}})";
  std::mt19937 random(10);
  for (int round = 0; round < 10; ++round) {
    const auto matcher = Compile(GrammarKind::kJsonSchema, schema);
    std::vector<std::vector<int32_t>> masks;
    for (int step = 0; step < 12 && !matcher->IsStopped(); ++step) {
      masks.push_back(Allowed(*matcher));
      ASSERT_TRUE(matcher->Consume(masks.back()[random() % masks.back().size()]).ok());
    }
    for (int back = static_cast<int>(masks.size()) - 1; back >= 0; --back) {
      ASSERT_TRUE(matcher->Rollback(1).ok());
      EXPECT_EQ(Allowed(*matcher), masks[back]);
    }
    EXPECT_EQ(matcher->Rollback(1).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(GrammarTest, ForcedTokensAreAllowedInTurn) {
  const auto matcher = Compile(GrammarKind::kRegex, "hello there[.!]");
  const std::vector<int32_t> forced = *matcher->ForcedTokens();
  EXPECT_FALSE(forced.empty());
  EXPECT_TRUE(std::string("hello there.").starts_with(tokenizer_->Decode(forced, false)));
  for (int32_t id : forced) EXPECT_TRUE(matcher->Consume(id).ok());
}

TEST_F(GrammarTest, WrongGrammarsAreRefused) {
  const auto error = [&](GrammarKind kind, const std::string& grammar) {
    return vocabulary_->Compile(kind, grammar).status();
  };
  for (const char* schema : {"", "{", "{\"type\": \"nope\"}", "{\"$ref\": \"#/missing\"}", "3"}) {
    EXPECT_EQ(error(GrammarKind::kJsonSchema, schema).code(), absl::StatusCode::kInvalidArgument)
        << schema;
  }
  EXPECT_EQ(error(GrammarKind::kRegex, "(").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(error(GrammarKind::kLark, "start: missing").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(error(GrammarKind::kLark, std::string(1 << 20, 'a')).message(), HasSubstr("at most"));
}

TEST_F(GrammarTest, GrammarBombsEndInAnAnswer) {
  const auto repeat = [](const std::string& part, int count) {
    std::string text;
    for (int index = 0; index < count; ++index) text += part;
    return text;
  };
  const auto chain = [](int count, const std::string& start, const std::string& name,
                        const std::string& between, const std::string& after) {
    std::string text = start;
    for (int link = 0; link < count; ++link) {
      text += name + std::to_string(link) + between + std::to_string(link + 1) + after;
    }
    return text;
  };
  const std::vector<std::pair<GrammarKind, std::string>> bombs = {
      {GrammarKind::kRegex, repeat("(", 4000) + repeat(")", 4000)},
      {GrammarKind::kRegex, repeat("a|", 4000) + "b"},
      {GrammarKind::kRegex, repeat("a?", 4000)},
      {GrammarKind::kRegex, "a" + repeat("?", 8000)},
      {GrammarKind::kRegex, "((((a{1,99}){1,99}){1,99}){1,99}){1,99}"},
      {GrammarKind::kRegex, "a{2000000000}"},
      {GrammarKind::kLark, "start: " + repeat("(", 10'000)},
      {GrammarKind::kLark, "start: \"a\"" + repeat("?", 10'000)},
      {GrammarKind::kLark, "start: start start | \"a\""},
      {GrammarKind::kLark, "start: " + repeat("~", 10'000) + "\"a\""},
      {GrammarKind::kLark, chain(1200, "start: r0\n", "r", ": r", "\n") + "r1200: \"a\"\n"},
      {GrammarKind::kLark, chain(800, "start: R0\n", "R", ": \"a\" R", "\n") + "R800: \"a\"\n"},
      {GrammarKind::kJsonSchema, repeat(R"({"anyOf": [)", 500) + "{}" + repeat("]}", 500)},
      {GrammarKind::kJsonSchema, R"({"$ref": "#"})"},
      {GrammarKind::kJsonSchema, chain(3500, R"({"$ref": "#/$defs/d0", "$defs": {)", "\"d",
                                       R"(":{"$ref":"#/$defs/d)", "\"},") +
                                     R"("d3500": {"type": "string"}}})"},
      {GrammarKind::kJsonSchema, R"({"type": "array", "minItems": 100000000})"},
      {GrammarKind::kJsonSchema, R"({"type": "string", "minLength": 100000000})"},
      {GrammarKind::kJsonSchema, R"({"type": "string", "pattern": ")" + repeat("a?", 5000) + "\"}"},
  };
  std::mt19937 random(11);
  for (const auto& [kind, grammar] : bombs) {
    auto matcher = vocabulary_->Compile(kind, grammar);
    if (!matcher.ok()) {
      EXPECT_EQ(matcher.status().code(), absl::StatusCode::kInvalidArgument)
          << grammar.substr(0, 40) << matcher.status();
      continue;
    }
    std::vector<uint32_t> mask(vocabulary_->mask_words());
    const absl::Status status = (*matcher)->ComputeMask(absl::MakeSpan(mask));
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kInternal) << status;
  }
}

TEST_F(GrammarTest, VocabularyMustFitTheModel) {
  EXPECT_FALSE(GrammarVocabulary::Create(*tokenizer_, 10, {eos_}).ok());
  EXPECT_FALSE(GrammarVocabulary::Create(*tokenizer_, kVocabSize, {}).ok());
  EXPECT_FALSE(GrammarVocabulary::Create(*tokenizer_, kVocabSize, {kVocabSize}).ok());
  EXPECT_FALSE(GrammarVocabulary::Create(*tokenizer_, kVocabSize, {-1}).ok());
}

TEST_F(GrammarTest, TokensOutsideTheVocabularyAreRefused) {
  const auto matcher = Compile(GrammarKind::kRegex, "a*");
  for (int32_t id : {-1, kVocabSize, INT32_MAX}) {
    EXPECT_EQ(matcher->Consume(id).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(matcher->Rollback(-1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(matcher->Consume(*tokenizer_->TokenId("a")).ok());
}

}  // namespace
}  // namespace epic::text
