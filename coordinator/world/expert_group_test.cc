#include "coordinator/world/expert_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

constexpr ModelShape kShape{.layer_count = 2, .first_expert_layer = 1, .expert_count = 4};

// Two ranks with both roles, each with room for all experts.
class ExpertGroupTest : public testing::Test {
 protected:
  ExpertGroupTest() {
    for (const int rank : {0, 1}) Join(rank);
    group_.PlanSoon();
  }
  void Join(int rank) {
    group_.hosts().Join(rank, 4, "");
    ranks_.push_back({{.rank = rank, .generation = 1}, /*attention=*/true, /*experts=*/true});
  }
  void Answer(const Placement& placement) {
    for (const auto& [rank, order] : placement.orders) {
      v1::ExpertsReady ready;
      ready.set_order(order.order());
      EXPECT_TRUE(group_.hosts().OnReady(rank, ready).ok());
    }
  }
  // Both hold what they are to hold, and the map says so.
  void Settle() {
    group_.Start();
    Answer(group_.OnTime(ranks_, false));
    group_.PublishSoon();
    ASSERT_TRUE(group_.OnTime(ranks_, false).maps);
  }

  ExpertGroup group_{kShape, 1, MapPublisher(7, "")};
  std::vector<cluster::RankEntry> ranks_;
};

TEST_F(ExpertGroupTest, NothingIsPlannedBeforeTheStart) {
  EXPECT_TRUE(group_.OnTime(ranks_, false).orders.empty());
  EXPECT_TRUE(group_.plan_due());
  group_.Start();
  const Placement placement = group_.OnTime(ranks_, false);
  EXPECT_EQ(placement.orders.size(), 2u);
  EXPECT_FALSE(placement.maps);  // nobody holds anything yet
  EXPECT_FALSE(group_.plan_due());
  EXPECT_DEATH(group_.Start(), "starts once");
}

TEST_F(ExpertGroupTest, WhatIsHeldIsPublishedWithoutAPlan) {
  Settle();
  EXPECT_EQ(group_.map().version.number, 1u);
  EXPECT_EQ(group_.map().unhosted_count(), 0);
  group_.PublishSoon();
  const Placement placement = group_.OnTime(ranks_, false);
  EXPECT_FALSE(placement.maps);
  EXPECT_TRUE(placement.orders.empty());
}

TEST_F(ExpertGroupTest, ALossIsPlannedForAtOnceAndOthersOfItsPeriodTogether) {
  Join(2);
  Settle();
  for (const int lost : {1, 2}) {
    group_.Remove(lost);
    ranks_.pop_back();
    const Placement placement = group_.PlanUrgently(ranks_, false);
    EXPECT_EQ(placement.maps.has_value(), lost == 1);
  }
  EXPECT_TRUE(group_.plan_due());
  const Placement placement = group_.OnTime(ranks_, false);
  ASSERT_TRUE(placement.maps);
  ASSERT_EQ(placement.orders.size(), 1u);
  EXPECT_EQ(placement.orders[0].first, 0);
  Answer(placement);
  EXPECT_EQ(group_.hosts().unhosted_count(), 0);
}

}  // namespace
}  // namespace epic::coordinator
