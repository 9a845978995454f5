#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "coordinator/world/world_test_util.h"

namespace epic::coordinator {
namespace {

using testing::HasSubstr;

TEST_F(WorldTest, StartsWhenAllExpectedRanksAreThereAndPublishesWhenAllExpertsAre) {
  EXPECT_EQ(Why(), "waiting for ranks: 0 of 3");
  Join(Hello(true, false));
  Join(Hello(false, true), /*answers=*/false);
  EXPECT_EQ(Why(), "waiting for ranks: 2 of 3");
  EXPECT_TRUE(ranks_.at(1).orders.empty());
  Join(Hello(false, true), /*answers=*/false);
  EXPECT_EQ(ranks_.at(1).orders.size(), 1u);
  EXPECT_EQ(Why(), "30 of 30 experts unhosted; ranks 1, 2 load them");
  Answer(1);
  EXPECT_EQ(ranks_.at(0).map.number(), 0u);
  EXPECT_FALSE(world_->Routable(0));
  Answer(2);
  EXPECT_TRUE(world_->Ready().ok());
  EXPECT_TRUE(world_->Routable(0));
  EXPECT_FALSE(world_->Routable(1));
  for (const int rank : {0, 1, 2}) {
    const cluster::ExpertMap map = MapOf(rank);
    EXPECT_EQ(map.version, (cluster::MapVersion{5, 1}));
    EXPECT_EQ(map.Find(0)->generation, ranks_.at(0).generation);
  }
  EXPECT_EQ(MapOf(0).unhosted_count(), 0);
  EXPECT_EQ(MapOf(0).ranks.size(), 3u);
  EXPECT_EQ(MapOf(0).Find(2)->generation, ranks_.at(2).generation);
}

TEST_F(WorldTest, WithoutANumberItStartsWhenAllFitsAndNobodyComes) {
  NewWorld({.term = 5});
  Join(Hello(true, false));
  Join(Hello(false, true, 20));
  Advance(absl::Seconds(3));
  EXPECT_EQ(Why(), "30 experts need a slot each, and 10 slots are missing");
  Join(Hello(false, true, 20));
  Advance(absl::Milliseconds(1900));
  EXPECT_EQ(Why(), "waiting for more ranks to join");
  Advance(absl::Milliseconds(200));
  EXPECT_TRUE(world_->Ready().ok());
}

TEST_F(WorldTest, ARankThatHoldsAllExpertsNeedsNothing) {
  NewWorld({.term = 5});
  v1::ControlHello hello;
  hello.set_generation(1);
  const auto rank = world_->Join(hello, clock_.Now());
  EXPECT_TRUE(world_->Take().messages.empty());
  EXPECT_EQ(Why(), "loading");
  SendReady(*rank);
  EXPECT_TRUE(world_->Ready().ok());
  EXPECT_TRUE(world_->Routable(*rank));
  world_->OnClosed(*rank, absl::UnavailableError("gone"), clock_.Now());
  EXPECT_EQ(Why(), "no worker");
  ASSERT_EQ(world_->Take().lost.size(), 1u);
}

TEST_F(WorldTest, ARankThatHoldsAllExpertsIsNotLostForItsSilence) {
  v1::ControlHello hello = Hello(true, true);
  hello.mutable_worker()->set_holds_all_experts(true);
  Join(hello);
  for (int turn = 0; turn < 1000; ++turn) {
    clock_.Advance(absl::Milliseconds(50));
    world_->OnTime(clock_.Now(), {});
  }
  EXPECT_EQ(world_->members().size(), 1u);
}

TEST_F(WorldTest, TheOnlyRankForRequestsIsNotDrainedEvenWhileItLoads) {
  const auto rank = world_->Join(Hello(true, false), clock_.Now());
  const absl::Status refused = world_->Drain(*rank, clock_.Now());
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("no rank but rank 0 takes requests"));
}

TEST_F(WorldTest, OthersAreRefusedByName) {
  Join(Hello(true, false));
  v1::ControlHello hello = Hello(false, true);
  hello.mutable_worker()->set_profile("amx");
  EXPECT_THAT(std::string(world_->Join(hello, clock_.Now()).status().message()),
              testing::AllOf(HasSubstr("amx"), HasSubstr("fma")));
  hello = Hello(false, true);
  hello.mutable_worker()->set_checkpoint("d");
  EXPECT_FALSE(world_->Join(hello, clock_.Now()).ok());
  hello = Hello(false, true);
  hello.mutable_worker()->set_expert_count(11);
  EXPECT_FALSE(world_->Join(hello, clock_.Now()).ok());
  hello = Hello(false, false);
  EXPECT_FALSE(world_->Join(hello, clock_.Now()).ok());
  hello = Hello(false, true);
  hello.mutable_worker()->clear_address();
  EXPECT_FALSE(world_->Join(hello, clock_.Now()).ok());
  for (const int layers : {-1, 0, 1 << 30}) {
    hello = Hello(false, true);
    hello.mutable_worker()->set_layer_count(layers);
    EXPECT_FALSE(world_->Join(hello, clock_.Now()).ok());
  }
  EXPECT_EQ(std::ranges::count(Kinds(), "refuse"), 8);
  EXPECT_EQ(world_->members().size(), 1u);
}

}  // namespace
}  // namespace epic::coordinator
