#include "coordinator/core/deaths.h"

#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

using Verdict = Deaths::Verdict;

TEST(DeathsTest, WhatMakesTokensBetweenDeathsIsNeverSuspect) {
  Deaths deaths;
  for (int length = 0; length < 100; ++length) {
    EXPECT_EQ(deaths.OnDeath(length, length % 2 == 0), Verdict::kGoesOn);
  }
}

TEST(DeathsTest, TheSecondDeathAtATokenMakesASuspectUntilItHasMadeOne) {
  Deaths deaths;
  EXPECT_EQ(deaths.OnDeath(5, false), Verdict::kGoesOn);
  EXPECT_EQ(deaths.OnDeath(5, false), Verdict::kSuspect);
  EXPECT_TRUE(deaths.suspect());
  deaths.OnToken();
  EXPECT_FALSE(deaths.suspect());
  EXPECT_EQ(deaths.OnDeath(6, true), Verdict::kGoesOn);
}

TEST(DeathsTest, WhatKillsARankAloneTwiceIsQuarantined) {
  Deaths deaths;
  EXPECT_EQ(deaths.OnDeath(5, false), Verdict::kGoesOn);
  EXPECT_EQ(deaths.OnDeath(5, false), Verdict::kSuspect);
  EXPECT_EQ(deaths.OnDeath(5, true), Verdict::kSuspect);
  EXPECT_EQ(deaths.OnDeath(5, true), Verdict::kQuarantine);
  Deaths alone;
  EXPECT_EQ(alone.OnDeath(0, true), Verdict::kGoesOn);
  EXPECT_EQ(alone.OnDeath(0, true), Verdict::kQuarantine);
}

}  // namespace
}  // namespace epic::coordinator
