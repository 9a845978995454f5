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
    Member member{.generation = 1};
    member.identity.set_attention(true);
    member.identity.set_experts(true);
    member.identity.set_expert_slots(4);
    group_.Join(rank, member);
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
    Answer(group_.OnTime(false));
    group_.PublishSoon();
    ASSERT_TRUE(group_.OnTime(false).maps);
  }

  ExpertProofs proofs_;
  ExpertGroup group_{kShape, 1, proofs_, {.term = 7}};
};

TEST_F(ExpertGroupTest, NothingIsPlannedBeforeTheStart) {
  EXPECT_TRUE(group_.OnTime(false).orders.empty());
  EXPECT_TRUE(group_.plan_due());
  group_.Start();
  const Placement placement = group_.OnTime(false);
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
  const Placement placement = group_.OnTime(false);
  EXPECT_FALSE(placement.maps);
  EXPECT_TRUE(placement.orders.empty());
}

TEST_F(ExpertGroupTest, ALossIsPlannedForAtOnceAndOthersOfItsPeriodTogether) {
  Join(2);
  Settle();
  for (const int lost : {1, 2}) {
    group_.Remove(lost);
    const Placement placement = group_.PlanUrgently(false);
    EXPECT_EQ(placement.maps.has_value(), lost == 1);
  }
  EXPECT_TRUE(group_.plan_due());
  const Placement placement = group_.OnTime(false);
  ASSERT_TRUE(placement.maps);
  ASSERT_EQ(placement.orders.size(), 1u);
  EXPECT_EQ(placement.orders[0].first, 0);
  Answer(placement);
  EXPECT_EQ(group_.hosts().unhosted_count(), 0);
}

TEST_F(ExpertGroupTest, APromisedMapSaysWhatWillBeHeld) {
  const Placement placement = group_.PlanPromised();
  ASSERT_TRUE(placement.maps);
  EXPECT_EQ(group_.map().unhosted_count(), 0);
  EXPECT_EQ(group_.hosts().unhosted_count(), 4);
  Answer(placement);
  EXPECT_EQ(group_.hosts().replicas(), group_.map().replicas);
  // It has come true, and nothing is to be said of it.
  group_.PublishSoon();
  EXPECT_FALSE(group_.OnTime(false).maps);
}

TEST_F(ExpertGroupTest, WhatARankHoldsFromBeforeIsNotLoadedAgain) {
  Member member{.generation = 1};
  member.identity.set_experts(true);
  member.identity.set_expert_slots(4);
  v1::LayerExperts& held = *member.identity.add_held_experts();
  held.set_layer(1);
  for (const int expert : {1, 3}) {
    held.add_experts(expert);
    held.add_hashes(100 + expert);
  }
  group_.Join(2, member);
  EXPECT_EQ(group_.hosts().held_count(2), 2);
  EXPECT_EQ(group_.hosts().unhosted_count(), 2);
  for (const auto& [rank, order] : group_.PlanPromised().orders) {
    if (rank == 2) {
      EXPECT_FALSE(group_.hosts().loading(2));
    } else {
      EXPECT_THAT(order.layers(0).experts(), testing::Each(testing::AnyOf(0, 2)));
    }
  }
  // Bytes that differ from those of the first loader are not believed.
  member.identity.mutable_held_experts(0)->set_hashes(0, 7);
  group_.Join(3, member);
  EXPECT_EQ(group_.hosts().held_count(3), 0);
}

}  // namespace
}  // namespace epic::coordinator
