#include "kernels/pairs_by_expert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "kernels/testing/random.h"

namespace epic::kernels {
namespace {

TEST(PairsByExpert, IsAStableSortByExpert) {
  Random random(1);
  PairsByExpert order;
  for (int trial = 0; trial < 200; ++trial) {
    const int experts = random.Integer(1, 40);
    std::vector<ExpertRow> pairs(random.Integer(0, 90));
    for (ExpertRow& pair : pairs) pair = {random.Integer(0, 9), random.Integer(0, experts - 1)};
    std::vector<int32_t> expected(pairs.size());
    std::iota(expected.begin(), expected.end(), 0);
    std::ranges::stable_sort(expected, {}, [&](int32_t i) { return pairs[i].expert; });
    order.Sort(pairs, experts);
    EXPECT_THAT(order.pairs(), testing::ElementsAreArray(expected));

    int64_t covered = 0;
    int32_t previous = -1;
    for (const PairsByExpert::Group& group : order.groups()) {
      EXPECT_GT(group.expert, previous);
      EXPECT_EQ(group.first, covered);
      EXPECT_GT(group.count, 0);
      for (int64_t i = group.first; i < group.first + group.count; ++i) {
        EXPECT_EQ(pairs[order.pairs()[i]].expert, group.expert);
      }
      previous = group.expert;
      covered += group.count;
    }
    EXPECT_EQ(covered, static_cast<int64_t>(pairs.size()));
  }
}

}  // namespace
}  // namespace epic::kernels
