#include "coordinator/world/world.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/sim_loop.h"

namespace epic::coordinator {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;

// Ranks that answer orders at once unless told otherwise; they keep the newest map that they got.
class WorldTest : public testing::Test {
 protected:
  struct Rank {
    uint64_t generation = 0;
    v1::PublishMap map;
    std::vector<v1::PlaceExperts> orders;
    std::vector<v1::JoinEpoch> invitations;
    bool answers = true;
    bool told_to_drain = false;
    std::string revoked;
  };

  void SetUp() override { NewWorld({.term = 5, .expect_ranks = 3}); }
  void NewWorld(WorldOptions options) {
    ranks_.clear();
    world_.emplace(std::move(options), log_);
  }

  v1::ControlHello Hello(bool attention, bool experts, int slots = 30) {
    v1::ControlHello hello;
    hello.set_generation(++generation_);
    v1::WorkerIdentity& worker = *hello.mutable_worker();
    worker.set_attention(attention);
    worker.set_experts(experts);
    worker.set_profile("fma");
    worker.set_checkpoint("c");
    worker.set_address("10.0.0.1:7000");
    worker.set_layer_count(4);
    worker.set_first_expert_layer(1);
    worker.set_expert_count(10);
    worker.set_expert_slots(slots);
    return hello;
  }
  int Join(const v1::ControlHello& hello, bool answers = true) {
    const auto rank = world_->Join(hello, clock_.Now());
    EXPECT_TRUE(rank.ok()) << rank.status();
    ranks_[*rank].generation = hello.generation();
    ranks_[*rank].answers = answers;
    if (hello.worker().attention()) SendReady(*rank);
    Deliver();
    return *rank;
  }
  void SendReady(int rank, const std::string& profile = "fma") {
    v1::ControlMessage message;
    message.mutable_ready()->set_profile(profile);
    message.mutable_ready()->set_checkpoint("c");
    world_->OnMessage(rank, message, clock_.Now());
  }
  void Answer(int rank) {
    v1::ControlMessage message;
    message.mutable_experts_ready()->set_order(ranks_.at(rank).orders.back().order());
    world_->OnMessage(rank, message, clock_.Now());
    Deliver();
  }
  void SendLink(int from, int to, bool up = false) {
    v1::ControlMessage message;
    if (up) {
      message.mutable_link_up()->set_rank(to);
    } else {
      message.mutable_link_down()->set_rank(to);
      message.mutable_link_down()->set_generation(ranks_.at(to).generation);
      message.mutable_link_down()->set_evidence("timed out");
    }
    world_->OnMessage(from, message, clock_.Now());
    Deliver();
  }
  void Report(int rank, const v1::RankReport& report) {
    v1::ControlMessage message;
    *message.mutable_rank_report() = report;
    world_->OnMessage(rank, message, clock_.Now());
    Deliver();
  }
  // Does what the world wants until it wants nothing.
  void Deliver() {
    while (true) {
      WorldActions actions = world_->Take();
      for (const LostRanks& lost : actions.lost) lost_.push_back(lost);
      for (const int rank : actions.move) moved_.push_back(rank);
      if (actions.messages.empty()) return;
      for (const auto& [rank, message] : actions.messages) OnMessage(rank, message);
    }
  }
  void OnMessage(int rank, const v1::ControlMessage& message) {
    Rank& to = ranks_[rank];
    if (message.has_publish_map()) {
      EXPECT_GT(message.publish_map().number(), to.map.number());
      EXPECT_TRUE(cluster::ExpertMapFrom(message.publish_map()).ok());
      to.map = message.publish_map();
    }
    if (message.has_join_epoch()) to.invitations.push_back(message.join_epoch());
    if (message.has_drain()) to.told_to_drain = true;
    if (message.has_revoked()) to.revoked = message.revoked().reason();
    if (!message.has_place_experts()) return;
    to.orders.push_back(message.place_experts());
    if (to.answers) Answer(rank);
  }
  // What does not hurry is planned for together.
  void Settle() {
    for (int turn = 0; turn < 2; ++turn) {
      clock_.Advance(absl::Milliseconds(1));
      world_->OnTime(clock_.Now(), {});
      Deliver();
    }
  }
  void Advance(absl::Duration duration, const std::map<int, int>& sequences = {}) {
    const absl::Time end = clock_.Now() + duration;
    while (clock_.Now() < end) {
      clock_.Advance(absl::Milliseconds(50));
      world_->OnTime(clock_.Now(), sequences);
      Deliver();
    }
  }
  cluster::ExpertMap MapOf(int rank) { return *cluster::ExpertMapFrom(ranks_.at(rank).map); }
  std::vector<std::string> Kinds() {
    std::vector<std::string> kinds;
    for (const Event& event : log_.Read(0)) kinds.push_back(event.kind);
    return kinds;
  }
  std::string Why() { return std::string(world_->Ready().message()); }

  SimLoop clock_;
  EventLog log_{clock_};
  std::optional<World> world_;
  std::map<int, Rank> ranks_;
  uint64_t generation_ = 100;
  std::vector<LostRanks> lost_;
  std::vector<int> moved_;
};

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
  hello.mutable_worker()->set_holds_all_experts(true);
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
  EXPECT_EQ(world_->hosts()->held_count(5), 0);
  EXPECT_NE(MapOf(0).Find(5), nullptr);
  world_->Freeze(false);
  Settle();
  EXPECT_GT(world_->hosts()->held_count(5), 5);
  Join(Hello(false, true, 15));
  Settle();
  EXPECT_GT(world_->hosts()->held_count(6), 3);
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
  EXPECT_EQ(world_->hosts()->held_count(4), 0);
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
  EXPECT_GT(world_->hosts()->held_count(4), 0);
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
