#include "worker/rank/work_ticks.h"

#include <gtest/gtest.h>

#include "base/sim_loop.h"

namespace epic::worker {
namespace {

TEST(WorkTicksTest, TicksCountTurnsAndKnowTheirLongestGaps) {
  SimLoop loop;
  WorkTicks ticks(loop);
  for (int i = 0; i < 200; ++i) {
    loop.Advance(absl::Milliseconds(i == 150 ? 40 : 2));
    ticks.Tick(false);
  }
  loop.Advance(absl::Seconds(9));
  ticks.Tick(true);  // idle time is no gap
  EXPECT_EQ(ticks.count(), 201);
  EXPECT_EQ(ticks.GapP99(), absl::Milliseconds(2));
  for (int i = 0; i < 5; ++i) {
    loop.Advance(absl::Milliseconds(40));
    ticks.Tick(false);
  }
  EXPECT_EQ(ticks.GapP99(), absl::Milliseconds(40));
}

}  // namespace
}  // namespace epic::worker
