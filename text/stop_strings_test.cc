#include "text/stop_strings.h"

#include <random>

#include "gtest/gtest.h"

namespace epic::text {
namespace {

struct Outcome {
  std::string sent;
  std::optional<std::string> matched;
  bool operator==(const Outcome&) const = default;
};

Outcome Send(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopStrings stop(stops);
  Outcome outcome;
  for (const std::string& piece : pieces) outcome.sent += stop.Push(piece);
  outcome.sent += stop.Flush();
  outcome.matched = stop.matched();
  return outcome;
}

TEST(StopStringsTest, TextEndsBeforeTheStopString) {
  EXPECT_EQ(Send({"END"}, {"some EN", "D more"}), (Outcome{"some ", "END"}));
  EXPECT_EQ(Send({"END"}, {"some EN", "d more"}), (Outcome{"some ENd more", std::nullopt}));
  EXPECT_EQ(Send({"END"}, {"some EN"}), (Outcome{"some EN", std::nullopt}));
}

TEST(StopStringsTest, OnlyWhatMayStartAStopStringIsHeld) {
  StopStrings stop({"aab", "xyz"});
  EXPECT_EQ(stop.Push("caaa"), "ca");
  EXPECT_EQ(stop.Push("x"), "aa");
  EXPECT_EQ(stop.Push("y"), "");
  EXPECT_EQ(stop.Push("q"), "xyq");
}

TEST(StopStringsTest, TheFirstToBeCompleteWins) {
  EXPECT_EQ(Send({"abcd", "bc"}, {"xabcd"}), (Outcome{"xa", "bc"}));
  EXPECT_EQ(Send({"bc", "abc"}, {"xabcd"}), (Outcome{"x", "abc"}));
  EXPECT_EQ(Send({"abc", "ab"}, {"xabc"}), (Outcome{"x", "ab"}));
}

TEST(StopStringsTest, NothingFollowsAMatch) {
  StopStrings stop({"."});
  EXPECT_EQ(stop.Push("a.b"), "a");
  EXPECT_EQ(stop.Push("c"), "");
  EXPECT_EQ(stop.Flush(), "");
}

TEST(StopStringsTest, EmptyStopStringsAreIgnored) {
  EXPECT_EQ(Send({"", ""}, {"abc"}), (Outcome{"abc", std::nullopt}));
  EXPECT_EQ(Send({}, {"abc"}), (Outcome{"abc", std::nullopt}));
}

TEST(StopStringsTest, AnySplitGivesTheSame) {
  std::mt19937 random(5);
  const auto random_text = [&](size_t size_max) {
    std::string text(1 + random() % size_max, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (size_t count = random() % 4; count > 0; --count) stops.push_back(random_text(6));
    const std::string text = random_text(24);
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      pieces.push_back(text.substr(at, 1 + random() % 4));
      at += pieces.back().size();
    }
    const Outcome whole = Send(stops, {text});
    EXPECT_EQ(Send(stops, pieces), whole) << text;
    EXPECT_TRUE(text.starts_with(whole.sent + whole.matched.value_or("")));
    EXPECT_EQ(whole.matched.has_value(), whole.sent != text);
  }
}

}  // namespace
}  // namespace epic::text
