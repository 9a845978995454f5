#include "coordinator/core/cluster_status.h"

#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

TEST(ClusterStatusTest, TheTimesOfStepsAddUpAndTheWorkersOwnSumsStayAsTheyAre) {
  v1::StepReport report;
  StepCounts counts;
  for (int step = 1; step <= 3; ++step) {
    report.set_step(step);
    report.set_step_seconds(0.25);
    report.set_prompt_tokens_computed(5 * step);
    counts = StepCountsFrom(counts, report);
  }
  // Of pages that are free now, between steps.
  report.clear_step_seconds();
  counts = StepCountsFrom(counts, report);
  EXPECT_EQ(counts.time, absl::Milliseconds(750));
  EXPECT_EQ(counts.prompt_tokens_computed, 15);
  EXPECT_EQ(counts.number, 3);
}

}  // namespace
}  // namespace epic::coordinator
