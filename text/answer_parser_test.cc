#include "text/answer_parser.h"

#include <algorithm>
#include <random>

#include "gtest/gtest.h"

namespace epic::text {
namespace {

// The parts of an answer, and how many of its tokens were pushed until it ended by itself.
struct Answer {
  AnswerDelta text;
  size_t token_count = 0;
  bool ended = false;
};

class AnswerParserTest : public ::testing::Test {
 protected:
  std::vector<int32_t> Ids(const std::string& text) const {
    return *tokenizer_->Encode(text, {.parse_special = true});
  }

  // Reads as the core and the frontends do: until the parser says that the answer has ended.
  Answer ParseAll(const std::string& prompt, absl::Span<const int32_t> tokens,
                  const AnswerFormat& format) const {
    AnswerParser parser(*tokenizer_, Ids(prompt), format);
    Answer answer;
    while (answer.token_count < tokens.size() && !parser.ended()) {
      Append(parser.Push(tokens[answer.token_count++]), &answer.text);
    }
    answer.ended = parser.ended();
    Append(parser.Finish(), &answer.text);
    return answer;
  }
  AnswerDelta Parse(const std::string& prompt, absl::Span<const int32_t> answer) const {
    return ParseAll(prompt, answer, {}).text;
  }

  static void Append(const AnswerDelta& delta, AnswerDelta* whole) {
    whole->reasoning += delta.reasoning;
    whole->content += delta.content;
    whole->reasoning_tokens += delta.reasoning_tokens;
  }

  void ExpectParse(const std::string& prompt, const std::string& answer,
                   const std::string& reasoning, const std::string& content) const {
    const AnswerDelta piece = Parse(prompt, Ids(answer));
    EXPECT_EQ(piece.reasoning, reasoning) << prompt << "|" << answer;
    EXPECT_EQ(piece.content, content) << prompt << "|" << answer;
  }

  std::shared_ptr<const Tokenizer> tokenizer_ = *Tokenizer::Load("models/tiny-r1");
};

const char kOpened[] = "<｜User｜>q<｜Assistant｜><think>\n";
const char kClosed[] = "<｜User｜>q<｜Assistant｜></think>";
const char kBare[] = "<｜User｜>q<｜Assistant｜>";

TEST_F(AnswerParserTest, ReasoningOpenedByTheTemplate) {
  ExpectParse(kOpened, "let me see\n</think>\n\nIt is 42.", "let me see", "It is 42.");
  ExpectParse(kOpened, "a\n\nb</think>c\n", "a\n\nb", "c\n");
  ExpectParse(kOpened, "</think>c", "", "c");
  ExpectParse(kOpened, "\n\n</think>\n\n", "", "");
}

TEST_F(AnswerParserTest, ReasoningOpenedByTheModel) {
  ExpectParse(kBare, "<think>\nr\n</think>\n\nc", "r", "c");
  ExpectParse(kBare, " \n<think>r</think>c", "r", "c");
  ExpectParse("", "<think>r</think>c", "r", "c");
}

TEST_F(AnswerParserTest, ModelThatNeverCloses) {
  ExpectParse(kOpened, "r and r\n\n", "r and r\n\n", "");
  ExpectParse(kBare, "<think>\nr", "r", "");
  ExpectParse(kBare, "<think>", "", "");
}

TEST_F(AnswerParserTest, ModelThatDoesNotReason) {
  ExpectParse(kBare, "\nc\n", "", "\nc\n");
  ExpectParse(kClosed, "\n\nc", "", "c");
  ExpectParse(std::string(kClosed) + "\n\n", "<think>", "", "<think>");
  ExpectParse(kBare, "  ", "", "  ");
}

TEST_F(AnswerParserTest, LaterMarkersAreText) {
  ExpectParse(kBare, "c <think> d </think>", "", "c <think> d </think>");
  ExpectParse(kOpened, "r</think>c<think>d</think>", "r", "c<think>d</think>");
  ExpectParse(kOpened, "r<think>s</think>c", "r<think>s", "c");
}

TEST_F(AnswerParserTest, EarlierTurnsDoNotCount) {
  ExpectParse(std::string("<think>\nx</think>y") + kBare, "c", "", "c");
  ExpectParse(std::string("<think>x</think>y") + kOpened, "r</think>c", "r", "c");
}

TEST_F(AnswerParserTest, CountsTheTokensBetweenTheMarkers) {
  const std::vector<int32_t> inside = Ids("let me see\n");
  std::vector<int32_t> answer = inside;
  answer.push_back(*tokenizer_->TokenId("</think>"));
  answer.push_back(Ids("c").front());
  EXPECT_EQ(Parse(kOpened, answer).reasoning_tokens, static_cast<int>(inside.size()));
  EXPECT_EQ(Parse(kClosed, answer).reasoning_tokens, 0);
}

TEST_F(AnswerParserTest, HalfCharactersEndAtTheMarker) {
  const int32_t half = *tokenizer_->TokenId("ð"), close = *tokenizer_->TokenId("</think>");
  const AnswerDelta piece = Parse(kOpened, {half, close, half});
  EXPECT_EQ(piece.reasoning, "\xEF\xBF\xBD");
  EXPECT_EQ(piece.content, "\xEF\xBF\xBD");
}

TEST_F(AnswerParserTest, WhatWasSentIsNeverTakenBack) {
  // At every cut of the answer, what was sent is the start of what a stream that ends there gives.
  const std::vector<int32_t> answer = Ids("a\n\nb 日😀\n\n</think>\n\nc\n\n<think>d");
  AnswerParser parser(*tokenizer_, Ids(kOpened), {});
  AnswerDelta sent;
  for (size_t count = 0; count < answer.size(); ++count) {
    const AnswerDelta ended = Parse(kOpened, absl::MakeSpan(answer).subspan(0, count));
    EXPECT_TRUE(ended.reasoning.starts_with(sent.reasoning));
    EXPECT_TRUE(ended.content.starts_with(sent.content));
    EXPECT_EQ(ended.reasoning_tokens, sent.reasoning_tokens);
    Append(parser.Push(answer[count]), &sent);
  }
  EXPECT_EQ(sent.reasoning, "a\n\nb 日😀");
  EXPECT_EQ(sent.content, "c\n\n<think>d");
}

TEST_F(AnswerParserTest, RandomAnswersLoseOnlyMarkersAndNewlines) {
  std::mt19937 random(6);
  const std::vector<std::string> parts = {"<think>", "</think>", "\n", "a", " ", "\n\n", "é"};
  for (int round = 0; round < 2000; ++round) {
    std::string answer;
    for (int part = random() % 9; part > 0; --part) answer += parts[random() % parts.size()];
    const std::string prompt = std::vector{kOpened, kClosed, kBare}[random() % 3];
    const AnswerDelta piece = Parse(prompt, Ids(answer));
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

TEST_F(AnswerParserTest, StopStringsLookAtTheContentAlone) {
  const std::vector<int32_t> tokens = Ids("carry 1\n\ncarry 2\n</think>\n\nA carry.\n\nB");
  const auto parse = [&](std::vector<std::string> stop) {
    return ParseAll(kOpened, tokens, {.stop = std::move(stop)});
  };
  for (const char* stop : {"carry", "\n\n", "think", "</think>", "2\n</think>\n\nA", "\n\nA"}) {
    EXPECT_EQ(parse({stop}).text.reasoning, "carry 1\n\ncarry 2") << stop;
  }
  EXPECT_EQ(parse({"carry"}).text.content, "A ");
  EXPECT_EQ(parse({"\n\n"}).text.content, "A carry.");
  for (const char* stop : {"think", "</think>", "2A", "2\n</think>\n\nA", "\n\nA"}) {
    const Answer answer = parse({stop});
    EXPECT_EQ(answer.text.content, "A carry.\n\nB") << stop;
    EXPECT_FALSE(answer.ended) << stop;
  }
  // The markers that are not markers are text like any other.
  EXPECT_EQ(
      ParseAll(kOpened, Ids("r</think>c<think>d</think>e"), {.stop = {"</think>"}}).text.content,
      "c<think>d");
}

TEST_F(AnswerParserTest, AnAnswerThatIsNotSplitIsAllContent) {
  const std::vector<int32_t> tokens = Ids("carry 1\n</think>\n\nA carry.");
  const auto parse = [&](std::vector<std::string> stop) {
    return ParseAll(kOpened, tokens, {.split_reasoning = false, .stop = std::move(stop)}).text;
  };
  EXPECT_EQ(parse({}).content, "carry 1\n</think>\n\nA carry.");
  EXPECT_EQ(parse({}).reasoning_tokens, 0);
  EXPECT_EQ(parse({"carry"}).content, "");
  EXPECT_EQ(parse({"\n\n"}).content, "carry 1\n</think>");
  EXPECT_EQ(parse({"think>\n"}).content, "carry 1\n</");
}

TEST_F(AnswerParserTest, AnAnswerEndsWithTheTokenThatCompletesAStopString) {
  const std::vector<int32_t> tokens = Ids("r</think>ab cd ef gh");
  const Answer answer = ParseAll(kOpened, tokens, {.stop = {"b cd e"}});
  EXPECT_TRUE(answer.ended);
  EXPECT_EQ(answer.text.content, "a");
  EXPECT_LT(answer.token_count, tokens.size());
  // One token less, and nothing has ended: what may be the start of a stop string is sent at last.
  const Answer before =
      ParseAll(kOpened, absl::MakeSpan(tokens).first(answer.token_count - 1), {.stop = {"b cd e"}});
  EXPECT_FALSE(before.ended);
  EXPECT_TRUE(before.text.content.starts_with("ab cd"));
}

TEST_F(AnswerParserTest, SpecialTokensAreTextToAStopStringWhereTheyAreText) {
  const std::vector<int32_t> tokens = Ids("r</think>c<｜end▁of▁sentence｜>d");
  const AnswerFormat skips{.stop = {"<｜end▁of▁sentence｜>"}};
  EXPECT_EQ(ParseAll(kOpened, tokens, skips).text.content, "cd");
  const AnswerFormat shows{.skip_special = false, .stop = {"<｜end▁of▁sentence｜>"}};
  EXPECT_EQ(ParseAll(kOpened, tokens, shows).text.content, "c");
}

// The content that `stop` leaves, by looking at the whole text at once.
std::string CutAtFirstStop(const std::string& content, const std::vector<std::string>& stop) {
  size_t start = content.size(), end = std::string::npos;
  for (const std::string& one : stop) {
    const size_t at = content.find(one);
    if (at == std::string::npos) continue;
    if (at + one.size() < end || (at + one.size() == end && at < start)) {
      start = at;
      end = at + one.size();
    }
  }
  return content.substr(0, start);
}

TEST_F(AnswerParserTest, RandomAnswersEndWhereTheirContentCompletesAStopString) {
  std::mt19937 random(7);
  const std::vector<std::string> parts = {"<think>", "</think>", "\n", "a", " ",
                                          "\n\n",    "é",        "ab", "😀"};
  const std::vector<std::string> stops = {"\n\n", "a",        "ab", "a\n", "é",
                                          "k>a",  "</think>", " a", "😀"};
  int ended_count = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string text;
    for (int part = random() % 12; part > 0; --part) text += parts[random() % parts.size()];
    const std::string prompt = std::vector{kOpened, kClosed, kBare}[random() % 3];
    AnswerFormat format{.split_reasoning = random() % 4 > 0};
    const AnswerFormat without_stop = format;
    for (int count = random() % 3; count > 0; --count) {
      format.stop.push_back(stops[random() % stops.size()]);
    }
    const std::vector<int32_t> tokens = Ids(text);
    const Answer answer = ParseAll(prompt, tokens, format);
    const Answer whole = ParseAll(prompt, tokens, without_stop);
    EXPECT_EQ(answer.text.reasoning, whole.text.reasoning) << prompt << "|" << text;
    EXPECT_EQ(answer.text.content, CutAtFirstStop(whole.text.content, format.stop))
        << prompt << "|" << text;
    EXPECT_TRUE(answer.ended || answer.token_count == tokens.size());
    ended_count += answer.ended;
    // No shorter answer has ended.
    if (answer.token_count == 0) continue;
    EXPECT_FALSE(
        ParseAll(prompt, absl::MakeSpan(tokens).first(answer.token_count - 1), format).ended);
  }
  EXPECT_GT(ended_count, 400);
}

}  // namespace
}  // namespace epic::text
