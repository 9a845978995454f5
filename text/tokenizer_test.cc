#include "text/tokenizer.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/env.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "text/utf8.h"

namespace epic::text {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json Goldens() { return json::parse(std::ifstream("text/testdata/goldens.json")); }

std::shared_ptr<const Tokenizer> Load(const std::string& folder) {
  auto tokenizer = Tokenizer::Load(folder);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *tokenizer;
}

std::string WriteFolder(const std::string& name, const std::string& file,
                        const std::string& content) {
  const std::string folder = ::testing::TempDir() + "/text_tokenizer_" + name;
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/" + file) << content;
  return folder;
}

// A tokenizer.json whose vocabulary holds whole pieces, so that ids show how text is cut.
json PieceTokenizer(const std::vector<std::string>& byte_level_pieces) {
  json file = json::parse(std::ifstream("models/tiny-r1/tokenizer.json"));
  json& vocab = file["model"]["vocab"];
  for (const std::string& piece : byte_level_pieces) {
    if (!vocab.contains(piece)) vocab[piece] = 2000 + vocab.size();
  }
  file["model"]["ignore_merges"] = true;
  return file;
}

std::vector<std::string> Pieces(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::string> pieces;
  const std::vector<int32_t> ids = *tokenizer.Encode(text);
  for (int32_t id : ids) pieces.emplace_back(tokenizer.TokenBytes(id));
  return pieces;
}

// What spells added tokens comes out as other ids that read the same.
void ExpectPlain(const Tokenizer& tokenizer, const std::string& text) {
  const std::vector<int32_t> ids = *tokenizer.Encode(text);
  for (int32_t id : ids) EXPECT_FALSE(tokenizer.IsAdded(id)) << id << " from " << text;
  EXPECT_EQ(tokenizer.Decode(ids, false), LossyUtf8(text));
}

TEST(TokenizerTest, EncodesAsThePythonLibraryDoes) {
  const auto tokenizer = Load("models/tiny-r1");
  const json goldens = Goldens();
  for (const json& golden : goldens["tokenizer"]["encoded"]) {
    const auto text = golden["text"].get<std::string>();
    EXPECT_EQ(*tokenizer->Encode(text, {.parse_special = true}),
              golden["ids"].get<std::vector<int32_t>>())
        << golden;
    EXPECT_EQ(*tokenizer->Encode(text, {.add_special_tokens = true, .parse_special = true}),
              golden["framed"].get<std::vector<int32_t>>())
        << golden;
  }
}

TEST(TokenizerTest, DecodesAsThePythonLibraryDoes) {
  const auto tokenizer = Load("models/tiny-r1");
  const json goldens = Goldens();
  for (const json& golden : goldens["tokenizer"]["decoded"]) {
    const auto ids = golden["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer->Decode(ids, false), golden["text"].get<std::string>());
    EXPECT_EQ(tokenizer->Decode(ids, true), golden["text_skip_special"].get<std::string>());
  }
}

TEST(TokenizerTest, CutsTextAtTheDeepSeekPatterns) {
  const json file =
      PieceTokenizer({"Hello", "Ġworld", "123", "45", "æĹ¥æľ¬èªŀãĥĨãĤ¹ãĥĪ", "Ġfoo", ".bar", "ĠĠĊĊ",
                      "don", "'t", "_foo", "Ġ#", "Ġ'", "ll", "ĠĠ", "ĠĊ", "12", "14", "bar"});
  const auto tokenizer = Load(WriteFolder("pieces", "tokenizer.json", file.dump()));
  EXPECT_THAT(Pieces(*tokenizer, "Hello world 12345 日本語テスト! foo.bar  \n\n x  y"),
              ElementsAre("Hello", " world", " ", "123", "45", " ", "日本語テスト", "!", " foo",
                          ".bar", "  \n\n", " x", " ", " y"));
  EXPECT_THAT(Pieces(*tokenizer, "don't 3.14"), ElementsAre("don", "'t", " ", "3", ".", "14"));
  EXPECT_THAT(Pieces(*tokenizer, "x \n y"), ElementsAre("x", " \n", " y"));
  EXPECT_THAT(Pieces(*tokenizer, "  12"), ElementsAre("  ", "12"));
  EXPECT_THAT(Pieces(*tokenizer, "_foo #bar 'll"), ElementsAre("_foo", " #", "bar", " '", "ll"));
}

TEST(TokenizerTest, ReadsTiktokenFilesAsTiktokenDoes) {
  const auto tokenizer = Load("text/testdata/tiktoken");
  const json goldens = Goldens();
  for (const json& golden : goldens["tiktoken"]) {
    const auto text = golden["text"].get<std::string>();
    const auto plain = golden["plain"].get<std::vector<int32_t>>();
    EXPECT_EQ(*tokenizer->Encode(text), plain) << golden;
    EXPECT_EQ(*tokenizer->Encode(text, {.add_special_tokens = true, .parse_special = true}),
              golden["special"].get<std::vector<int32_t>>())
        << golden;
    EXPECT_EQ(tokenizer->Decode(plain, false), text);
  }
  EXPECT_EQ(tokenizer->TokenBytes(tokenizer->vocab_size() - 1),
            "<|reserved_token_" + std::to_string(tokenizer->vocab_size() - 1) + "|>");
  EXPECT_EQ(tokenizer->bos_token(), "[BOS]");
  EXPECT_TRUE(tokenizer->IsSpecial(*tokenizer->bos_id()));
  EXPECT_FALSE(tokenizer->IsSpecial(*tokenizer->TokenId("<think>")));
  EXPECT_TRUE(tokenizer->IsAdded(*tokenizer->TokenId("<think>")));
}

TEST(TokenizerTest, ReadsSentencePieceStyleVocabularies) {
  const auto tokenizer = Load("text/testdata/sentencepiece");
  const json goldens = Goldens();
  for (const json& golden : goldens["sentencepiece"]) {
    const auto text = golden["text"].get<std::string>();
    EXPECT_EQ(*tokenizer->Encode(text, {.parse_special = true}),
              golden["ids"].get<std::vector<int32_t>>())
        << golden;
    const auto framed =
        *tokenizer->Encode(text, {.add_special_tokens = true, .parse_special = true});
    EXPECT_EQ(framed, golden["framed"].get<std::vector<int32_t>>()) << golden;
    EXPECT_EQ(tokenizer->Decode(framed, false), golden["decoded"].get<std::string>());
    EXPECT_EQ(tokenizer->Decode(framed, true), golden["decoded_skip_special"].get<std::string>());
    ExpectPlain(*tokenizer, text);
  }
}

TEST(TokenizerTest, KnowsItsTokens) {
  const auto tokenizer = Load("models/tiny-r1");
  EXPECT_EQ(tokenizer->bos_id(), tokenizer->TokenId("<｜begin▁of▁sentence｜>"));
  EXPECT_EQ(tokenizer->eos_id(), tokenizer->TokenId("<｜end▁of▁sentence｜>"));
  EXPECT_EQ(tokenizer->eos_token(), "<｜end▁of▁sentence｜>");
  EXPECT_EQ(tokenizer->TokenBytes(*tokenizer->TokenId("Ġa")), " a");
  EXPECT_EQ(tokenizer->TokenBytes(*tokenizer->TokenId("ð")), "\xF0");
  EXPECT_FALSE(tokenizer->TokenId("no such token").has_value());
  EXPECT_TRUE(tokenizer->IsSpecial(*tokenizer->bos_id()));
  EXPECT_FALSE(tokenizer->IsSpecial(*tokenizer->TokenId("<think>")));
  for (int32_t outside : {-1, tokenizer->vocab_size(), INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(tokenizer->TokenBytes(outside), "");
    EXPECT_FALSE(tokenizer->IsToken(outside));
    EXPECT_FALSE(tokenizer->IsAdded(outside));
    EXPECT_EQ(tokenizer->Decode({outside}, false), "");
  }
}

TEST(TokenizerTest, PlainTextNeverBecomesAnAddedToken) {
  for (const std::string folder : {"models/tiny-r1", "text/testdata/tiktoken"}) {
    const auto tokenizer = Load(folder);
    std::vector<std::string> parts = {"<", ">", "｜", " ", "\n", "é", "\xF0\x9F", "a", "😀"};
    for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
      if (tokenizer->IsAdded(id)) parts.emplace_back(tokenizer->TokenBytes(id));
    }
    std::mt19937 random(1);
    for (int round = 0; round < 500; ++round) {
      std::string text;
      for (int part = random() % 8; part >= 0; --part) text += parts[random() % parts.size()];
      ExpectPlain(*tokenizer, text);
    }
  }
}

TEST(TokenizerTest, PlainTextIsSpelledOutWhereTheModelItselfKnowsAnAddedToken) {
  json file = PieceTokenizer({});
  file["model"]["vocab"]["think"] = 3000;
  file["added_tokens"].push_back({{"id", 3000},
                                  {"content", "think"},
                                  {"single_word", false},
                                  {"lstrip", false},
                                  {"rstrip", false},
                                  {"normalized", false},
                                  {"special", true}});
  const auto tokenizer = Load(WriteFolder("spelled", "tokenizer.json", file.dump()));
  EXPECT_THAT(*tokenizer->Encode("think", {.parse_special = true}), ElementsAre(3000));
  ExpectPlain(*tokenizer, "think");
  ExpectPlain(*tokenizer, "I think: think think");
}

TEST(TokenizerTest, AnyBytesRoundTripAsLossyUtf8) {
  const auto tokenizer = Load("models/tiny-r1");
  std::mt19937 random(2);
  for (int round = 0; round < 500; ++round) {
    std::string bytes(random() % 40, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random() % 4 ? random() % 256 : 0xF0);
    ExpectPlain(*tokenizer, bytes);
  }
}

TEST(TokenizerTest, LongRunsAreEncoded) {
  for (const std::string folder : {"models/tiny-r1", "text/testdata/tiktoken"}) {
    const auto tokenizer = Load(folder);
    for (const std::string unit : {" ", "a", "\n", "!", "1", " \n", "日", "'", "<think"}) {
      std::string text;
      while (text.size() < 200'000) text += unit;
      const auto ids = tokenizer->Encode(text + "x");
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(tokenizer->Decode(*ids, false), text + "x");
    }
  }
}

TEST(TokenizerTest, ManyThreadsEncodeTheSame) {
  const auto tokenizer = Load("models/tiny-r1");
  const json goldens = Goldens();
  std::vector<int> wrong(4);
  std::vector<std::unique_ptr<Threads::Handle>> threads;
  for (int& count : wrong) {
    threads.push_back(RealThreads().Start("encode", [&] {
      for (const json& golden : goldens["tokenizer"]["encoded"]) {
        const auto text = golden["text"].get<std::string>();
        count += *tokenizer->Encode(text, {.parse_special = true}) !=
                 golden["ids"].get<std::vector<int32_t>>();
      }
    }));
  }
  threads.clear();
  EXPECT_THAT(wrong, ::testing::Each(0));
}

TEST(TokenizerTest, AddsWhatTheConfigurationSays) {
  const std::string file = json::parse(std::ifstream("models/tiny-r1/tokenizer.json")).dump();
  json config = json::parse(std::ifstream("models/tiny-r1/tokenizer_config.json"));
  config["add_bos_token"] = false;
  config["add_eos_token"] = true;
  const std::string folder = WriteFolder("frame", "tokenizer.json", file);
  std::ofstream(folder + "/tokenizer_config.json") << config.dump();
  const auto tokenizer = Load(folder);
  EXPECT_THAT(*tokenizer->Encode("", {.add_special_tokens = true}),
              ElementsAre(*tokenizer->eos_id()));
}

TEST(TokenizerTest, FoldersWithoutAGoodTokenizerAreRefusedByName) {
  const auto load = [](const std::string& folder) { return Tokenizer::Load(folder).status(); };
  EXPECT_EQ(load("/nonexistent").code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(load("/nonexistent").message(), HasSubstr("tiktoken.model"));
  for (const std::string content : {"", "{", "[]", "{\"model\": 3}", "\xff\xff"}) {
    const absl::Status status = load(WriteFolder("bad", "tokenizer.json", content));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << content;
    EXPECT_THAT(status.message(), HasSubstr("tokenizer.json")) << content;
  }
  for (const std::string content : {"", "YQ==\n", "YQ== 1\n", "!! 0\n", "YQ== 0\nYg== 0\n"}) {
    const absl::Status status = load(WriteFolder("bad", "tiktoken.model", content));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << content;
    EXPECT_THAT(status.message(), HasSubstr("tiktoken.model")) << content;
  }
  json file = json::parse(std::ifstream("models/tiny-r1/tokenizer.json"));
  file["model"]["vocab"]["huge"] = 4'000'000'000u;
  EXPECT_THAT(load(WriteFolder("bad", "tokenizer.json", file.dump())).message(),
              HasSubstr("4000000000"));
  file = json::parse(std::ifstream("models/tiny-r1/tokenizer.json"));
  file["decoder"] = {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}};
  EXPECT_THAT(load(WriteFolder("bad", "tokenizer.json", file.dump())).message(),
              HasSubstr("WordPiece"));
}

}  // namespace
}  // namespace epic::text
