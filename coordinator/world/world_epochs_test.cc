// Ranks that step together, as World forms, places and loses them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "coordinator/world/world_test_util.h"

namespace epic::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(WorldTest, AnEpochIsLostAsOneButItsRanksLeaveOneByOne) {
  v1::ControlHello hello = Hello(true, true);
  hello.mutable_worker()->set_holds_all_experts(true);
  hello.mutable_worker()->set_epoch(77);
  for (int i = 0; i < 4; ++i) Join(hello);
  hello.mutable_worker()->clear_epoch();
  const int alone = Join(hello);
  EXPECT_THAT(world_->RanksLostTogether(1), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(world_->RanksLostTogether(alone), ElementsAre(alone));
  EXPECT_THAT(world_->RanksLostTogether(99), ElementsAre());

  v1::ControlMessage goodbye;
  goodbye.mutable_goodbye();
  world_->OnMessage(3, goodbye, clock_.Now());
  Deliver();
  ASSERT_EQ(lost_.size(), 1u);
  EXPECT_THAT(lost_[0].ranks, ElementsAre(3));
  EXPECT_TRUE(world_->Routable(0));

  world_->OnClosed(1, absl::UnavailableError("gone"), clock_.Now());
  Deliver();
  ASSERT_EQ(lost_.size(), 2u);
  EXPECT_THAT(lost_[1].ranks, ElementsAre(0, 1, 2));
  EXPECT_TRUE(lost_[1].unexplained);
  EXPECT_EQ(ranks_.at(0).revoked, "its epoch has ended with rank 1: gone");
  EXPECT_EQ(ranks_.at(1).revoked, "");
  EXPECT_TRUE(world_->Routable(alone));
  // The others' processes end too, and nobody asks any more.
  world_->OnClosed(0, absl::UnavailableError("gone"), clock_.Now());
  Deliver();
  EXPECT_EQ(lost_.size(), 2u);
}

TEST_F(WorldTest, AnEpochIsFormedAndEndsWithOneOfItsRanks) {
  NewWorld({.term = 5});
  v1::ControlHello hello = Hello(true, true);
  hello.mutable_worker()->clear_address();
  hello.mutable_worker()->set_epoch_ranks(2);
  const auto join = [&] {
    const int rank = *world_->Join(hello, clock_.Now());
    Deliver();
    return rank;
  };
  EXPECT_EQ(join(), 0);
  EXPECT_THAT(Why(), HasSubstr("waits for an epoch of 2 ranks"));
  EXPECT_EQ(join(), 1);
  ASSERT_EQ(ranks_[0].invitations.size(), 1u);
  EXPECT_EQ(ranks_[0].invitations[0].unique_id(), "");
  EXPECT_TRUE(ranks_[1].invitations.empty());

  v1::ControlMessage message;
  message.mutable_epoch_id()->set_epoch(ranks_[0].invitations[0].epoch());
  message.mutable_epoch_id()->set_unique_id("id");
  world_->OnMessage(0, message, clock_.Now());
  Deliver();
  EXPECT_EQ(ranks_[0].invitations.at(1).unique_id(), "id");
  EXPECT_EQ(ranks_[1].invitations.at(0).unique_id(), "id");
  EXPECT_EQ(ranks_[1].invitations.at(0).rank(), 1);
  EXPECT_EQ(ranks_[1].invitations.at(0).experts().layers_size(), 3);
  EXPECT_TRUE(cluster::ExpertMapFrom(ranks_[1].invitations.at(0).map()).ok());

  message.mutable_end_epoch()->set_reason("rank 1: its card is lost");
  world_->OnMessage(1, message, clock_.Now());
  Deliver();
  ASSERT_EQ(lost_.size(), 1u);
  EXPECT_THAT(lost_[0].ranks, ElementsAre(0, 1));
  EXPECT_TRUE(lost_[0].unexplained);
  EXPECT_EQ(ranks_[1].revoked, "rank 1: its card is lost");
  EXPECT_THAT(ranks_[0].revoked, HasSubstr("rank 1: its card is lost"));
  // They come again, and one is gone before the id is there.
  EXPECT_EQ(join(), 2);
  EXPECT_EQ(join(), 3);
  world_->OnClosed(3, absl::UnavailableError("gone"), clock_.Now());
  Deliver();
  EXPECT_THAT(ranks_[2].revoked, HasSubstr("gone"));
  EXPECT_EQ(world_->members().size(), 0u);
  hello.mutable_worker()->set_epoch_ranks(1 << 20);
  EXPECT_FALSE(world_->Join(hello, clock_.Now()).ok());
}

TEST_F(WorldTest, AnEpochIsPlacedFromHereAndGetsNewerMaps) {
  NewWorld({.term = 5, .replicas_max = 2});
  v1::ControlHello hello = Hello(true, true, 20);
  hello.mutable_worker()->clear_address();
  hello.mutable_worker()->set_epoch_ranks(2);
  hello.mutable_worker()->set_epoch(77);
  for (const int position : {1, 2}) {
    hello.mutable_worker()->set_epoch_position(position);
    ASSERT_TRUE(world_->Join(hello, clock_.Now()).ok());
    Deliver();
  }
  const auto ready = [&](int rank, uint64_t order) {
    v1::ControlMessage message;
    message.mutable_experts_ready()->set_order(order);
    world_->OnMessage(rank, message, clock_.Now());
  };
  for (const int rank : {0, 1}) {
    const v1::JoinEpoch& invitation = ranks_.at(rank).invitations.at(0);
    EXPECT_EQ(invitation.epoch(), 77u);
    EXPECT_EQ(invitation.map().number(), 1u);
    ready(rank, invitation.experts().order());
    SendReady(rank);
  }
  Deliver();
  EXPECT_TRUE(world_->Ready().ok());
  EXPECT_EQ(world_->CountExperts()->unhosted, 0);
  // Five slots of each rank are left: they get replicas while the epoch steps, and each newer map
  // goes to both ranks.
  Settle();
  EXPECT_EQ(world_->CountExpertsHeld(0), 20);
  EXPECT_EQ(world_->CountExperts()->unreplicated, 20);
  EXPECT_GT(ranks_.at(0).map.number(), 1u);
  EXPECT_EQ(ranks_.at(0).map.number(), ranks_.at(1).map.number());
  EXPECT_EQ(MapOf(1).unhosted_count(), 0);
  // The bytes of an expert that differ end the epoch: its ranks compute with each other's answers.
  v1::ControlMessage message;
  for (const int rank : {0, 1}) {
    v1::ExpertsReady& answer = *message.mutable_experts_ready();
    answer.set_order(ranks_.at(rank).orders.back().order());
    v1::LayerExperts& layer = *answer.add_layers();
    layer.set_layer(1);
    layer.add_experts(0);
    layer.add_hashes(7 + rank);
    world_->OnMessage(rank, message, clock_.Now());
    message.Clear();
  }
  Deliver();
  ASSERT_EQ(lost_.size(), 1u);
  EXPECT_THAT(lost_[0].ranks, ElementsAre(0, 1));
}

}  // namespace
}  // namespace epic::coordinator
