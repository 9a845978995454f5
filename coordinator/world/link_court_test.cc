#include "coordinator/world/link_court.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

using testing::HasSubstr;

class LinkCourtTest : public testing::Test {
 protected:
  void Accuse(int accuser, int accused) { court_.Accuse(accuser, accused, "timed out", now_); }
  void Later(absl::Duration duration) { now_ += duration; }

  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
  LinkCourt court_{absl::Milliseconds(500)};
};

TEST_F(LinkCourtTest, TwoWitnessesSufficeAtOnce) {
  Accuse(0, 4);
  EXPECT_FALSE(court_.Judge(now_));
  Accuse(1, 4);
  const auto verdict = court_.Judge(now_);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->rank, 4);
  EXPECT_THAT(verdict->evidence, HasSubstr("ranks 0, 1"));
}

TEST_F(LinkCourtTest, ARankCutOffThatAccusesAllIsFoundByThem) {
  for (const int other : {0, 1, 2}) {
    Accuse(3, other);
    Accuse(other, 3);
  }
  EXPECT_EQ(court_.Judge(now_)->rank, 3);
}

TEST_F(LinkCourtTest, OneThatAccusesManyIsRevokedItselfAfterAWhile) {
  Accuse(2, 0);
  Accuse(2, 1);
  EXPECT_FALSE(court_.Judge(now_));
  Later(absl::Milliseconds(500));
  EXPECT_EQ(court_.Judge(now_)->rank, 2);
}

TEST_F(LinkCourtTest, TwoDeathsSeenByOneRankAreNotItsFault) {
  Accuse(0, 1);
  Accuse(0, 2);
  Later(absl::Milliseconds(300));
  court_.Forget(1);
  court_.Forget(2);
  Later(absl::Seconds(5));
  EXPECT_FALSE(court_.Judge(now_));
  EXPECT_TRUE(court_.Pairs(now_).empty());
}

TEST_F(LinkCourtTest, ASinglePairIsNoVerdictAndCanHeal) {
  Accuse(0, 1);
  Accuse(1, 0);
  EXPECT_TRUE(court_.Pairs(now_).empty());
  Later(absl::Seconds(1));
  EXPECT_FALSE(court_.Judge(now_));
  ASSERT_EQ(court_.Pairs(now_).size(), 1u);
  EXPECT_EQ(court_.Pairs(now_)[0].low, 0);
  EXPECT_EQ(court_.Pairs(now_)[0].high, 1);
  court_.Withdraw(0, 1);
  court_.Withdraw(1, 0);
  EXPECT_TRUE(court_.Pairs(now_).empty());
}

TEST_F(LinkCourtTest, AtMostOneRevocationASecond) {
  for (const int accused : {4, 5}) {
    Accuse(0, accused);
    Accuse(1, accused);
  }
  EXPECT_EQ(court_.Judge(now_)->rank, 4);
  court_.Forget(4);
  Later(absl::Milliseconds(999));
  EXPECT_FALSE(court_.Judge(now_));
  Later(absl::Milliseconds(1));
  EXPECT_EQ(court_.Judge(now_)->rank, 5);
}

}  // namespace
}  // namespace epic::coordinator
