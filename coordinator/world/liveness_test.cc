#include "coordinator/world/liveness.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace epic::coordinator {
namespace {

using testing::HasSubstr;

class LivenessTest : public testing::Test {
 protected:
  v1::RankReport Computing(uint64_t ticks) {
    v1::RankReport report;
    report.set_activity(v1::RankReport::COMPUTING);
    report.set_stage("attention");
    report.set_layer(3);
    report.set_ticks(ticks);
    return report;
  }
  v1::RankReport Waiting(int rank) {
    v1::RankReport report;
    report.set_activity(v1::RankReport::WAITING);
    report.set_waits_for(rank);
    report.set_layer(12);
    return report;
  }
  // Time goes on in turns of 50 ms; `each` is what is reported in every second turn.
  std::optional<Suspicion> Run(absl::Duration duration, const std::function<void()>& each) {
    const absl::Time end = now_ + duration;
    for (int turn = 0; now_ < end; ++turn) {
      now_ += absl::Milliseconds(50);
      if (turn % 2 == 0) each();
      if (auto suspicion = liveness_.Judge(now_)) return suspicion;
    }
    return std::nullopt;
  }

  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
  Liveness liveness_{{}};
  uint64_t tick_ = 0;
};

TEST_F(LivenessTest, ARankThatTicksOrWaitsOrIsIdleIsNeverSuspect) {
  EXPECT_FALSE(Run(absl::Seconds(30), [&] {
    liveness_.Report(0, Waiting(1), now_);
    liveness_.Report(1, Waiting(2), now_);
    liveness_.Report(2, Computing(++tick_), now_);
    liveness_.Report(3, Waiting(4), now_);
    liveness_.Report(4, {}, now_);
  }));
  EXPECT_EQ(liveness_.Activity(2, now_), "computing attention of layer 3");
  EXPECT_EQ(liveness_.Activity(9, now_), "");
}

TEST_F(LivenessTest, TheEndOfTheWaitsIsNamedWhenItTicksNoMore) {
  const absl::Time began = now_;
  const auto suspicion = Run(absl::Seconds(30), [&] {
    liveness_.Report(0, Waiting(1), now_);
    liveness_.Report(1, Waiting(2), now_);
    liveness_.Report(2, Computing(7), now_);
  });
  ASSERT_TRUE(suspicion);
  EXPECT_EQ(suspicion->rank, 2);
  EXPECT_THAT(suspicion->evidence, HasSubstr("limit 300 ms"));
  EXPECT_THAT(suspicion->evidence, HasSubstr("rank 0 is waiting for rank 1 at layer 12"));
  EXPECT_LE(now_ - began, absl::Milliseconds(450));
}

TEST_F(LivenessTest, ARankStoppedInTheMiddleOfAWaitIsFoundThroughItsWaiter) {
  liveness_.Report(1, Waiting(2), now_);
  const auto suspicion = Run(absl::Seconds(30), [&] {
    liveness_.Report(0, Waiting(1), now_);
    liveness_.Report(2, Computing(++tick_), now_);
  });
  ASSERT_TRUE(suspicion);
  EXPECT_EQ(suspicion->rank, 1);
}

TEST_F(LivenessTest, ASlowRankHasItsOwnLimit) {
  v1::RankReport slow = Computing(1);
  slow.set_tick_gap_p99_seconds(0.1);
  const absl::Time began = now_;
  const auto suspicion = Run(absl::Seconds(30), [&] {
    liveness_.Report(0, Waiting(1), now_);
    liveness_.Report(1, slow, now_);
  });
  ASSERT_TRUE(suspicion);
  EXPECT_GE(now_ - began, absl::Milliseconds(800));
  EXPECT_LE(now_ - began, absl::Milliseconds(950));
}

TEST_F(LivenessTest, ImpossibleReportsGiveNobodyUnendingTime) {
  for (const double gap : {1e300, std::numeric_limits<double>::infinity(), -5.0,
                           std::numeric_limits<double>::quiet_NaN()}) {
    Liveness liveness({});
    v1::RankReport report = Computing(1), waiting = Waiting(1);
    report.set_tick_gap_p99_seconds(gap);
    waiting.set_waiting_seconds(gap);
    bool found = false;
    for (int turn = 0; turn < 200 && !found; ++turn) {
      now_ += absl::Milliseconds(50);
      liveness.Report(0, waiting, now_);
      liveness.Report(1, report, now_);
      found = liveness.Judge(now_).has_value();
    }
    EXPECT_TRUE(found) << gap;
  }
}

TEST_F(LivenessTest, SilenceIsALossAndLongerWhileLoading) {
  liveness_.Report(5, {}, now_);
  const absl::Time began = now_;
  auto suspicion = Run(absl::Seconds(30), [] {});
  ASSERT_TRUE(suspicion);
  EXPECT_EQ(suspicion->rank, 5);
  EXPECT_LE(now_ - began, absl::Milliseconds(2100));
  liveness_.Forget(5);
  v1::RankReport loading;
  loading.set_activity(v1::RankReport::LOADING);
  liveness_.Report(6, loading, now_);
  EXPECT_FALSE(Run(absl::Seconds(9), [] {}));
  EXPECT_TRUE(Run(absl::Seconds(2), [] {}));
}

TEST_F(LivenessTest, ARankThatJoinsAndNeverReportsIsLost) {
  liveness_.Expect(4, now_);
  EXPECT_FALSE(Run(absl::Seconds(9), [] {}));  // it may be loading
  const auto suspicion = Run(absl::Seconds(3), [] {});
  ASSERT_TRUE(suspicion.has_value());
  EXPECT_EQ(suspicion->rank, 4);
  EXPECT_THAT(suspicion->evidence, HasSubstr("no report for"));
}

TEST_F(LivenessTest, ACircleOfWaitsAccusesNobody) {
  EXPECT_FALSE(Run(absl::Seconds(10), [&] {
    liveness_.Report(0, Waiting(1), now_);
    liveness_.Report(1, Waiting(0), now_);
  }));
}

TEST_F(LivenessTest, AnObserverThatStoppedItselfAccusesNobody) {
  const auto all = [&] {
    liveness_.Report(0, Waiting(1), now_);
    liveness_.Report(1, Computing(++tick_), now_);
  };
  EXPECT_FALSE(Run(absl::Seconds(1), all));
  now_ += absl::Seconds(60);
  EXPECT_FALSE(liveness_.Judge(now_));
  EXPECT_FALSE(Run(absl::Milliseconds(200), [] {}));
  EXPECT_FALSE(Run(absl::Seconds(1), all));
}

}  // namespace
}  // namespace epic::coordinator
