// A world whose ranks the test is.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/sim_loop.h"
#include "coordinator/world/world.h"

namespace epic::coordinator {

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
    for (const Event& event : log_.Read(0)) kinds.emplace_back(NameOf(event.kind));
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

}  // namespace epic::coordinator
