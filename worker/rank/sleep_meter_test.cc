#include "worker/rank/sleep_meter.h"

#include <gtest/gtest.h>

namespace epic::worker {
namespace {

class SleepMeterTest : public testing::Test {
 protected:
  // One turn, with a sleep of 3 s before it.
  double Turn(int64_t inputs_before, int64_t inputs_after, bool worked) {
    meter_.Sleep(now_, inputs_before);
    now_ += absl::Seconds(3);
    meter_.Wake(now_);
    if (worked) meter_.Worked(inputs_after);
    return absl::ToDoubleSeconds(meter_.asleep_with_work());
  }

  SleepMeter meter_;
  absl::Time now_ = absl::UnixEpoch();
};

TEST_F(SleepMeterTest, ASleepThatNothingEndedMustEndInNoWork) {
  EXPECT_EQ(Turn(5, 5, false), 0);  // nothing to do
  EXPECT_EQ(Turn(5, 6, true), 0);   // what arrived gave work
  EXPECT_EQ(Turn(6, 6, true), 3);
  EXPECT_EQ(Turn(6, 6, true), 6);
}

TEST_F(SleepMeterTest, ASleepIsJudgedOnceAndTurnsWithoutOneAreNot) {
  EXPECT_EQ(Turn(0, 0, true), 3);
  meter_.Worked(0);
  meter_.Wake(now_ + absl::Seconds(9));
  meter_.Worked(0);
  EXPECT_EQ(meter_.asleep_with_work(), absl::Seconds(3));
}

}  // namespace
}  // namespace epic::worker
