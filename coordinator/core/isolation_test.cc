#include "coordinator/core/isolation.h"

#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

// Two deaths at one token make a suspect.
void MakeSuspect(Isolation& isolation, uint64_t sequence, int priority = 0) {
  EXPECT_EQ(isolation.OnDeath(sequence, 3, false), Deaths::Verdict::kGoesOn);
  EXPECT_FALSE(isolation.suspect(sequence));
  EXPECT_EQ(isolation.OnDeath(sequence, 3, false), Deaths::Verdict::kSuspect);
  isolation.Wait(sequence, priority);
}

TEST(IsolationTest, ASuspectGetsTheRankWithTheFewestOnceItIsEmpty) {
  Isolation isolation;
  EXPECT_FALSE(isolation.waits());
  MakeSuspect(isolation, 7);
  EXPECT_TRUE(isolation.waits());
  EXPECT_FALSE(isolation.PlaceNext({{0, 5}, {1, 2}, {2, 2}}).has_value());
  EXPECT_EQ(isolation.rank(), 1);
  // Another one is emptier by now, but this one was kept free so far.
  EXPECT_FALSE(isolation.PlaceNext({{0, 0}, {1, 1}}).has_value());
  EXPECT_EQ(isolation.rank(), 1);
  const auto choice = isolation.PlaceNext({{0, 0}, {1, 0}});
  ASSERT_TRUE(choice.has_value());
  EXPECT_EQ(choice->sequence, 7u);
  EXPECT_EQ(choice->rank, 1);
  EXPECT_FALSE(isolation.waits());
  EXPECT_EQ(isolation.rank(), 1) << "kept free while it runs";
}

TEST(IsolationTest, AnotherRankIsChosenWhenTheFirstIsGone) {
  Isolation isolation;
  MakeSuspect(isolation, 7);
  EXPECT_FALSE(isolation.PlaceNext({{0, 1}, {1, 2}}).has_value());
  EXPECT_EQ(isolation.rank(), 0);
  EXPECT_FALSE(isolation.PlaceNext({{1, 2}}).has_value());
  EXPECT_EQ(isolation.rank(), 1);
  EXPECT_FALSE(isolation.PlaceNext({}).has_value());
  EXPECT_EQ(isolation.rank(), -1);
}

TEST(IsolationTest, OneRunsAtATimeUntilItHasMadeAToken) {
  Isolation isolation;
  MakeSuspect(isolation, 7);
  MakeSuspect(isolation, 8, /*priority=*/-1);
  EXPECT_EQ(isolation.PlaceNext({{0, 0}})->sequence, 8u) << "the lower priority value";
  EXPECT_FALSE(isolation.waits());
  isolation.OnToken(8);
  EXPECT_FALSE(isolation.suspect(8));
  EXPECT_EQ(isolation.rank(), -1);
  EXPECT_TRUE(isolation.waits());
  EXPECT_EQ(isolation.PlaceNext({{0, 0}})->sequence, 7u);
}

TEST(IsolationTest, NoRankIsKeptFreeForOneThatLeftOrEnded) {
  Isolation isolation;
  MakeSuspect(isolation, 7);
  EXPECT_FALSE(isolation.PlaceNext({{0, 1}}).has_value());
  isolation.Forget(7);
  EXPECT_EQ(isolation.rank(), -1);
  EXPECT_FALSE(isolation.waits());
  MakeSuspect(isolation, 8);
  EXPECT_TRUE(isolation.PlaceNext({{0, 0}}).has_value());
  isolation.Leave(8);
  EXPECT_EQ(isolation.rank(), -1);
  EXPECT_TRUE(isolation.suspect(8)) << "what is known of its deaths stays";
}

TEST(IsolationTest, WhatKillsARankAloneTwiceIsQuarantined) {
  Isolation isolation;
  MakeSuspect(isolation, 7);
  EXPECT_EQ(isolation.OnDeath(7, 3, true), Deaths::Verdict::kSuspect);
  EXPECT_EQ(isolation.OnDeath(7, 3, true), Deaths::Verdict::kQuarantine);
}

}  // namespace
}  // namespace epic::coordinator
