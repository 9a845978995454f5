// A world that serves: losses, verdicts and drains.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "coordinator/world/world_test_util.h"

namespace epic::coordinator {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;

class RunningWorldTest : public WorldTest {
 protected:
  // Ranks 0 and 1: attention, 2 to 4: experts.
  void SetUp() override {
    NewWorld({.term = 5, .expect_ranks = 5, .pair_secret = std::string(32, 's')});
    Join(Hello(true, false));
    Join(Hello(true, false));
    for (int i = 0; i < 3; ++i) Join(Hello(false, true, 15));
    Settle();
    ASSERT_TRUE(world_->Ready().ok());
    number_ = world_->map().version.number;
  }
  void Close(int rank) {
    world_->OnClosed(rank, absl::UnavailableError("gone"), clock_.Now());
    Deliver();
  }
  v1::RankReport Waiting(int rank) {
    v1::RankReport report;
    report.set_activity(v1::RankReport::WAITING);
    report.set_waits_for(rank);
    return report;
  }
  uint64_t number_ = 0;
};

TEST_F(RunningWorldTest, ALostExpertRankLeavesTheMapAtOnceAndSurvivorsLoadItsExperts) {
  ranks_.at(2).answers = ranks_.at(3).answers = false;
  Close(4);
  ASSERT_EQ(lost_.size(), 1u);
  EXPECT_TRUE(lost_[0].unexplained);
  EXPECT_EQ(MapOf(0).version.number, number_ + 1);
  EXPECT_EQ(MapOf(0).unhosted_count(), 10);
  EXPECT_EQ(MapOf(0).Find(4), nullptr);
  EXPECT_EQ(Why(), "10 of 30 experts unhosted; ranks 2, 3 load them");
  EXPECT_TRUE(world_->ReadySoon().ok());
  EXPECT_TRUE(world_->Routable(0));
  Answer(2);
  Advance(absl::Milliseconds(50));
  EXPECT_EQ(MapOf(0).unhosted_count(), 5);
  Answer(3);
  EXPECT_EQ(MapOf(0).unhosted_count(), 0);
  EXPECT_TRUE(world_->Ready().ok());
  Settle();
  // No slot is left for another one's.
  Close(3);
  EXPECT_EQ(Why(), "15 of 30 experts unhosted, and 15 slots are missing");
  EXPECT_FALSE(world_->ReadySoon().ok());
  // Until a new rank joins.
  const int rank = Join(Hello(false, true, 15));
  EXPECT_EQ(rank, 5);
  EXPECT_TRUE(world_->ReadySoon().ok());
  Settle();
  EXPECT_TRUE(world_->Ready().ok());
  EXPECT_EQ(MapOf(5).Find(0)->generation, ranks_.at(0).generation);
  EXPECT_EQ(MapOf(0).unhosted_count(), 0);
}

TEST_F(RunningWorldTest, PairsShareAKeyThatNobodyElseHas) {
  EXPECT_EQ(MapOf(0).Find(3)->pair_key, MapOf(3).Find(0)->pair_key);
  EXPECT_EQ(MapOf(0).Find(3)->pair_key.size(), 32u);
  EXPECT_NE(MapOf(0).Find(3)->pair_key, MapOf(1).Find(3)->pair_key);
}

TEST_F(RunningWorldTest, AJoinTakesItsShareUnlessAllIsFrozen) {
  world_->Freeze(true);
  Join(Hello(false, true, 15));
  Settle();
  EXPECT_EQ(world_->CountExpertsHeld(5), 0);
  EXPECT_NE(MapOf(0).Find(5), nullptr);
  world_->Freeze(false);
  Settle();
  EXPECT_GT(world_->CountExpertsHeld(5), 5);
  Join(Hello(false, true, 15));
  Settle();
  EXPECT_GT(world_->CountExpertsHeld(6), 3);
  EXPECT_EQ(MapOf(0).unhosted_count(), 0);
}

TEST_F(RunningWorldTest, AHungRankIsNamedAndRevoked) {
  v1::RankReport stuck;
  stuck.set_activity(v1::RankReport::COMPUTING);
  stuck.set_stage("experts");
  for (int turn = 0; turn < 40 && lost_.empty(); ++turn) {
    Report(0, Waiting(3));
    Report(3, stuck);
    Advance(absl::Milliseconds(50));
  }
  ASSERT_EQ(lost_.size(), 1u);
  EXPECT_THAT(lost_[0].ranks, ElementsAre(3));
  EXPECT_FALSE(lost_[0].unexplained);
  Settle();
  EXPECT_THAT(ranks_.at(3).revoked, HasSubstr("while rank 0 is waiting for rank 3"));
  EXPECT_EQ(MapOf(0).unhosted_count(), 0);
  EXPECT_THAT(Kinds(), Contains("revoke"));
}

TEST_F(RunningWorldTest, FrozenItIsNamedAndNotRevoked) {
  world_->Freeze(true);
  v1::RankReport stuck;
  stuck.set_activity(v1::RankReport::COMPUTING);
  for (int turn = 0; turn < 40; ++turn) {
    Report(0, Waiting(3));
    Report(3, stuck);
    Advance(absl::Milliseconds(50));
  }
  EXPECT_TRUE(lost_.empty());
  EXPECT_EQ(std::ranges::count(Kinds(), "suspect"), 1);
}

TEST_F(RunningWorldTest, TwoThatCannotReachARankRevokeIt) {
  SendLink(0, 2);
  EXPECT_TRUE(lost_.empty());
  SendLink(1, 2);
  ASSERT_EQ(lost_.size(), 1u);
  EXPECT_THAT(lost_[0].ranks, ElementsAre(2));
  EXPECT_TRUE(lost_[0].unexplained);
}

TEST_F(RunningWorldTest, ASingleBrokenLinkMovesRequestsAndHeals) {
  SendLink(0, 2);
  Advance(absl::Seconds(1));
  EXPECT_TRUE(lost_.empty());
  EXPECT_THAT(moved_, ElementsAre(0));
  EXPECT_FALSE(world_->Routable(0));
  EXPECT_TRUE(world_->Routable(1));
  SendLink(0, 2, /*up=*/true);
  Advance(absl::Milliseconds(100));
  EXPECT_TRUE(world_->Routable(0));
  EXPECT_EQ(moved_.size(), 1u);
}

TEST_F(RunningWorldTest, WithNowhereToGoTheYoungerOfThePairIsRevoked) {
  Close(1);
  lost_.clear();
  SendLink(0, 2);
  Advance(absl::Seconds(1));
  ASSERT_EQ(lost_.size(), 1u);
  EXPECT_THAT(lost_[0].ranks, ElementsAre(2));
}

TEST_F(RunningWorldTest, AnAccusationOfAnEarlierLifeIsPassedOver) {
  for (const int accuser : {0, 1}) {
    v1::ControlMessage message;
    message.mutable_link_down()->set_rank(2);
    message.mutable_link_down()->set_generation(1);
    world_->OnMessage(accuser, message, clock_.Now());
  }
  Advance(absl::Seconds(2));
  EXPECT_TRUE(lost_.empty());
}

TEST_F(RunningWorldTest, OtherBytesOfAnExpertAreNamedAndNotUsed) {
  v1::ControlMessage message;
  const auto ready = [&](int rank, uint64_t hash) {
    v1::ExpertsReady& answer = *message.mutable_experts_ready();
    answer.set_order(ranks_.at(rank).orders.back().order());
    answer.clear_layers();
    v1::LayerExperts& layer = *answer.add_layers();
    layer.set_layer(1);
    layer.add_experts(0);
    layer.add_hashes(hash);
    world_->OnMessage(rank, message, clock_.Now());
    Deliver();
  };
  ready(2, 7);
  ready(3, 8);
  EXPECT_EQ(world_->State(3), "refused");
  Settle();
  EXPECT_EQ(MapOf(0).Find(3), nullptr);
  EXPECT_EQ(MapOf(0).unhosted_count(), 0);
  EXPECT_THAT(log_.Read(0), Contains(Field(&Event::text, HasSubstr("rank 2, its first loader"))));
}

TEST_F(RunningWorldTest, ADrainMovesExpertsThenRequestsThenLetsTheRankEnd) {
  EXPECT_TRUE(world_->Drain(4, clock_.Now()).ok());
  Settle();
  EXPECT_EQ(world_->CountExpertsHeld(4), 0);
  EXPECT_EQ(MapOf(0).unhosted_count(), 0);
  Advance(absl::Milliseconds(50));
  EXPECT_TRUE(ranks_.at(4).told_to_drain);
  EXPECT_FALSE(world_->CancelDrain(4).ok());
  v1::ControlMessage goodbye;
  goodbye.mutable_goodbye();
  world_->OnMessage(4, goodbye, clock_.Now());
  Deliver();
  ASSERT_EQ(lost_.size(), 1u);
  EXPECT_FALSE(lost_[0].unexplained);
  // The others are full now.
  const absl::Status refused = world_->Drain(3, clock_.Now());
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("lack 15 slots"));

  EXPECT_TRUE(world_->Drain(1, clock_.Now()).ok());
  EXPECT_FALSE(world_->Routable(1));
  EXPECT_FALSE(world_->Drain(0, clock_.Now()).ok());
  for (int round = 0; round < 99; ++round) {
    for (const int rank : {0, 1, 2, 3}) Report(rank, {});
    Advance(absl::Milliseconds(100), {{1, 2}});
  }
  EXPECT_TRUE(moved_.empty());
  Advance(absl::Milliseconds(200), {{1, 2}});
  EXPECT_THAT(moved_, Contains(1));
  EXPECT_FALSE(ranks_.at(1).told_to_drain);
  EXPECT_TRUE(world_->CancelDrain(1).ok());
  EXPECT_TRUE(world_->Routable(1));
}

TEST_F(RunningWorldTest, LossesTakeAnOperatorsDrainBack) {
  EXPECT_TRUE(world_->Drain(4, clock_.Now()).ok());
  EXPECT_TRUE(world_->Drain(1, clock_.Now()).ok());
  Close(0);
  EXPECT_TRUE(world_->Routable(1));
  EXPECT_EQ(world_->State(4), "draining");
  EXPECT_THAT(log_.Read(0), Contains(Field(&Event::text, HasSubstr("taken back: no rank but"))));
  Close(3);
  Settle();
  EXPECT_EQ(world_->State(4), "ready");
  EXPECT_EQ(MapOf(1).unhosted_count(), 0);
  EXPECT_GT(world_->CountExpertsHeld(4), 0);
  EXPECT_THAT(log_.Read(0), Contains(Field(&Event::text, HasSubstr("taken back: the other"))));
}

TEST_F(RunningWorldTest, LossesHastenARankThatDrainsOfItself) {
  v1::ControlMessage wish;
  wish.mutable_drain();
  world_->OnMessage(4, wish, clock_.Now());
  Deliver();
  EXPECT_FALSE(ranks_.at(4).told_to_drain);
  Close(3);
  Advance(absl::Milliseconds(50));
  EXPECT_TRUE(ranks_.at(4).told_to_drain);
}

TEST_F(RunningWorldTest, ARankThatMustEndIsLetGoWhateverTheOthersCanHold) {
  Close(4);
  v1::ControlMessage wish;
  wish.mutable_drain();
  world_->OnMessage(3, wish, clock_.Now());
  Advance(absl::Milliseconds(50));
  EXPECT_TRUE(ranks_.at(3).told_to_drain);
}

TEST_F(RunningWorldTest, ManyLossesAtOnceArePlannedForTwice) {
  for (int i = 0; i < 6; ++i) Join(Hello(false, true, 15));
  Settle();
  for (auto& [rank, each] : ranks_) each.answers = false;
  const uint64_t number = MapOf(0).version.number;
  for (const int rank : {2, 3, 4, 5, 6}) Close(rank);
  EXPECT_EQ(MapOf(0).version.number, number + 1);
  EXPECT_TRUE(world_->ReadySoon().ok());
  world_->OnTime(clock_.Now(), {});
  Deliver();
  EXPECT_EQ(MapOf(0).version.number, number + 2);
  EXPECT_EQ(MapOf(0).ranks.size(), 5u);
  EXPECT_GT(MapOf(0).unhosted_count(), 0);
  for (const int rank : {7, 8, 9, 10}) Answer(rank);
  EXPECT_EQ(MapOf(0).version.number, number + 3);
  EXPECT_EQ(MapOf(0).unhosted_count(), 0);
}

TEST_F(RunningWorldTest, AFencedRankIsOut) {
  EXPECT_EQ(world_->Fence(77, clock_.Now()).code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(world_->Fence(3, clock_.Now()).ok());
  Deliver();
  EXPECT_EQ(MapOf(0).Find(3), nullptr);
  EXPECT_FALSE(lost_.at(0).unexplained);
}

TEST_F(RunningWorldTest, MessagesOfUnknownRanksAndKindsHarmNobody) {
  v1::ControlMessage message;
  world_->OnMessage(0, message, clock_.Now());
  world_->OnMessage(99, message, clock_.Now());
  message.mutable_welcome()->set_rank(3);
  world_->OnMessage(0, message, clock_.Now());
  SendReady(2);  // an expert rank
  EXPECT_EQ(world_->State(2), "refused");
  Deliver();
  EXPECT_TRUE(world_->Ready().ok());
}

}  // namespace
}  // namespace epic::coordinator
