#include "coordinator/journal/journal.h"

#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

TEST(JournalTest, AppendsByCompare) {
  Journal journal(1);
  EXPECT_EQ(journal.Append(0, 0, 0, {.token = 5}), AppendResult::kStale);
  EXPECT_EQ(journal.BeginAttempt(0), 1u);
  EXPECT_EQ(journal.Append(0, 1, 0, {.token = 5}), AppendResult::kAppended);
  EXPECT_EQ(journal.Append(0, 1, 0, {.token = 5}), AppendResult::kRepeated);
  EXPECT_EQ(journal.Append(0, 1, 0, {.token = 6}), AppendResult::kMismatch);
  EXPECT_EQ(journal.Append(0, 1, 2, {.token = 7}), AppendResult::kGap);
  EXPECT_EQ(journal.BeginAttempt(0), 2u);
  EXPECT_EQ(journal.Append(0, 1, 1, {.token = 7}), AppendResult::kStale);
  EXPECT_EQ(journal.Append(0, 2, 1, {.token = 7}), AppendResult::kAppended);
  EXPECT_EQ(journal.Tokens(0), (std::vector<int32_t>{5, 7}));
}

TEST(JournalTest, ASealedChoiceTakesNothingAndKeepsItsFirstEnd) {
  Journal journal(2);
  const uint32_t attempt = journal.BeginAttempt(1);
  journal.Seal(1, v1::FINISH_REASON_STOP);
  journal.Seal(1, v1::FINISH_REASON_CANCELLED);
  EXPECT_EQ(journal.Append(1, attempt, 0, {.token = 1}), AppendResult::kStale);
  EXPECT_EQ(journal.Read(1, 0).finish, v1::FINISH_REASON_STOP);
  EXPECT_FALSE(journal.all_sealed());
  journal.Seal(0, v1::FINISH_REASON_LENGTH);
  EXPECT_TRUE(journal.all_sealed());
}

TEST(JournalTest, AReadCopiesAtMostWhatWasAskedAndEndsWithTheLastToken) {
  Journal journal(1);
  const uint32_t attempt = journal.BeginAttempt(0);
  for (int i = 0; i < 10; ++i) journal.Append(0, attempt, i, {.token = i});
  journal.Seal(0, v1::FINISH_REASON_STOP);
  const Slice first = journal.Read(0, 0, 4);
  EXPECT_EQ(first.tokens.size(), 4u);
  EXPECT_EQ(first.finish, v1::FINISH_REASON_NONE);
  const Slice last = journal.Read(0, 6, 4);
  EXPECT_EQ(last.tokens.size(), 4u);
  EXPECT_EQ(last.tokens.at(3).token, 9);
  EXPECT_EQ(last.finish, v1::FINISH_REASON_STOP);
  EXPECT_EQ(journal.Read(0, 10, 4).finish, v1::FINISH_REASON_STOP);
  EXPECT_EQ(journal.Read(0, 99, 4).finish, v1::FINISH_REASON_STOP);
  EXPECT_EQ(journal.Read(0, 0).tokens.size(), 10u);
}

TEST(JournalTest, AListenerIsCalledAtOnceAndOnGrowth) {
  Journal journal(1);
  int calls = 0;
  journal.SetListener([&] { ++calls; });
  journal.Notify();
  EXPECT_EQ(calls, 2);
}

}  // namespace
}  // namespace epic::coordinator
