#include "text/reasoning_parser.h"

#include <random>

#include "gtest/gtest.h"

namespace epic::text {
namespace {

using Piece = ReasoningParser::Piece;

class ReasoningParserTest : public ::testing::Test {
 protected:
  std::vector<int32_t> Ids(const std::string& text) const {
    return *tokenizer_->Encode(text, {.parse_special = true});
  }

  Piece Parse(const std::string& prompt, absl::Span<const int32_t> answer) const {
    ReasoningParser parser(*tokenizer_, Ids(prompt), true);
    Piece whole;
    for (int32_t token : answer) Append(parser.Push(token), &whole);
    Append(parser.Finish(), &whole);
    return whole;
  }

  static void Append(const Piece& piece, Piece* whole) {
    whole->reasoning += piece.reasoning;
    whole->content += piece.content;
    whole->reasoning_tokens += piece.reasoning_tokens;
  }

  void ExpectParse(const std::string& prompt, const std::string& answer,
                   const std::string& reasoning, const std::string& content) const {
    const Piece piece = Parse(prompt, Ids(answer));
    EXPECT_EQ(piece.reasoning, reasoning) << prompt << "|" << answer;
    EXPECT_EQ(piece.content, content) << prompt << "|" << answer;
  }

  std::shared_ptr<const Tokenizer> tokenizer_ = *Tokenizer::Load("models/tiny-r1");
};

const char kOpened[] = "<｜User｜>q<｜Assistant｜><think>\n";
const char kClosed[] = "<｜User｜>q<｜Assistant｜></think>";
const char kBare[] = "<｜User｜>q<｜Assistant｜>";

TEST_F(ReasoningParserTest, ReasoningOpenedByTheTemplate) {
  ExpectParse(kOpened, "let me see\n</think>\n\nIt is 42.", "let me see", "It is 42.");
  ExpectParse(kOpened, "a\n\nb</think>c\n", "a\n\nb", "c\n");
  ExpectParse(kOpened, "</think>c", "", "c");
  ExpectParse(kOpened, "\n\n</think>\n\n", "", "");
}

TEST_F(ReasoningParserTest, ReasoningOpenedByTheModel) {
  ExpectParse(kBare, "<think>\nr\n</think>\n\nc", "r", "c");
  ExpectParse(kBare, " \n<think>r</think>c", "r", "c");
  ExpectParse("", "<think>r</think>c", "r", "c");
}

TEST_F(ReasoningParserTest, ModelThatNeverCloses) {
  ExpectParse(kOpened, "r and r\n\n", "r and r\n\n", "");
  ExpectParse(kBare, "<think>\nr", "r", "");
  ExpectParse(kBare, "<think>", "", "");
}

TEST_F(ReasoningParserTest, ModelThatDoesNotReason) {
  ExpectParse(kBare, "\nc\n", "", "\nc\n");
  ExpectParse(kClosed, "\n\nc", "", "c");
  ExpectParse(std::string(kClosed) + "\n\n", "<think>", "", "<think>");
  ExpectParse(kBare, "  ", "", "  ");
}

TEST_F(ReasoningParserTest, LaterMarkersAreText) {
  ExpectParse(kBare, "c <think> d </think>", "", "c <think> d </think>");
  ExpectParse(kOpened, "r</think>c<think>d</think>", "r", "c<think>d</think>");
  ExpectParse(kOpened, "r<think>s</think>c", "r<think>s", "c");
}

TEST_F(ReasoningParserTest, EarlierTurnsDoNotCount) {
  ExpectParse(std::string("<think>\nx</think>y") + kBare, "c", "", "c");
  ExpectParse(std::string("<think>x</think>y") + kOpened, "r</think>c", "r", "c");
}

TEST_F(ReasoningParserTest, CountsTheTokensBetweenTheMarkers) {
  const std::vector<int32_t> inside = Ids("let me see\n");
  std::vector<int32_t> answer = inside;
  answer.push_back(*tokenizer_->TokenId("</think>"));
  answer.push_back(Ids("c").front());
  EXPECT_EQ(Parse(kOpened, answer).reasoning_tokens, static_cast<int>(inside.size()));
  EXPECT_EQ(Parse(kClosed, answer).reasoning_tokens, 0);
}

TEST_F(ReasoningParserTest, HalfCharactersEndAtTheMarker) {
  const int32_t half = *tokenizer_->TokenId("ð"), close = *tokenizer_->TokenId("</think>");
  const Piece piece = Parse(kOpened, {half, close, half});
  EXPECT_EQ(piece.reasoning, "\xEF\xBF\xBD");
  EXPECT_EQ(piece.content, "\xEF\xBF\xBD");
}

TEST_F(ReasoningParserTest, WhatWasSentIsNeverTakenBack) {
  // At every cut of the answer, what was sent is the start of what a stream that ends there gives.
  const std::vector<int32_t> answer = Ids("a\n\nb 日😀\n\n</think>\n\nc\n\n<think>d");
  ReasoningParser parser(*tokenizer_, Ids(kOpened), true);
  Piece sent;
  for (size_t count = 0; count < answer.size(); ++count) {
    const Piece ended = Parse(kOpened, absl::MakeSpan(answer).subspan(0, count));
    EXPECT_TRUE(ended.reasoning.starts_with(sent.reasoning));
    EXPECT_TRUE(ended.content.starts_with(sent.content));
    EXPECT_EQ(ended.reasoning_tokens, sent.reasoning_tokens);
    Append(parser.Push(answer[count]), &sent);
  }
  EXPECT_EQ(sent.reasoning, "a\n\nb 日😀");
  EXPECT_EQ(sent.content, "c\n\n<think>d");
}

TEST_F(ReasoningParserTest, RandomAnswersLoseOnlyMarkersAndNewlines) {
  std::mt19937 random(6);
  const std::vector<std::string> parts = {"<think>", "</think>", "\n", "a", " ", "\n\n", "é"};
  for (int round = 0; round < 2000; ++round) {
    std::string answer;
    for (int part = random() % 9; part > 0; --part) answer += parts[random() % parts.size()];
    const std::string prompt = std::vector{kOpened, kClosed, kBare}[random() % 3];
    const Piece piece = Parse(prompt, Ids(answer));
    const auto letters = [](std::string text) {
      std::erase_if(text, [](char c) { return c == '\n' || c == ' '; });
      return text;
    };
    std::string all = letters(answer);
    const bool opened_by_model = prompt == kBare && all.starts_with("<think>");
    if (opened_by_model) all.erase(0, 7);
    const size_t close = all.find("</think>");
    const bool reasons = opened_by_model || prompt == kOpened;
    if (reasons && close != std::string::npos) all.erase(close, 8);
    EXPECT_EQ(letters(piece.reasoning + piece.content), all) << prompt << "|" << answer;
  }
}

}  // namespace
}  // namespace epic::text
