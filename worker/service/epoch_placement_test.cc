#include "worker/service/epoch_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "cluster/transport/testing/world.h"
#include "kernels/reference/reference_backend.h"

namespace epic::worker {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr ExchangeShape kShape{
    .layer_count = 2, .expert_count = 4, .experts_per_token = 2, .hidden = 32};

// Slots that hold at once what they are ordered to.
class InstantSlots : public ExpertSlots {
 public:
  void Order(ExpertOrder order) override {
    last_order = order.order;
    held.clear();
    for (const auto& [name, proof] : order.wanted) held.insert(name.expert);
  }
  bool loading() const override { return false; }
  std::optional<ExpertOutcome> Advance() override { return std::nullopt; }
  int slots() const override { return 4; }
  int64_t order_bytes() const override { return 0; }
  int64_t order_total_bytes() const override { return 0; }
  bool Holds(int layer, int expert) const override { return held.contains(expert); }
  void Compute(int, kernels::Tensor, std::span<const kernels::ExpertRow>,
               kernels::Tensor) override {}

  uint64_t last_order = 0;
  std::set<int> held;
};

v1::PlaceExperts Order(uint64_t number, const std::vector<int>& experts) {
  v1::PlaceExperts order;
  order.set_order(number);
  v1::LayerExperts& layer = *order.add_layers();
  layer.set_layer(1);
  layer.mutable_experts()->Add(experts.begin(), experts.end());
  return order;
}

// Of ranks 10 and 11 of the world; holders[expert].
v1::PublishMap Map(uint64_t number, const std::vector<std::vector<int>>& holders) {
  cluster::ExpertMap map{.version = {7, number}, .replicas = {{}, holders}};
  for (const int rank : {10, 11}) {
    map.ranks.push_back({{.rank = rank}, /*attention=*/true, /*experts=*/true});
  }
  return ToMessage(map, map.ranks[0]);
}

// One rank of the epoch: 10 is at position 1, 11 at position 0.
class Rank {
 public:
  explicit Rank(cluster::Collective& collective)
      : exchange_(kShape, 8, *backend_, slots, collective) {}

  void Tell(const v1::PlaceExperts& order) {
    v1::ControlMessage message;
    *message.mutable_place_experts() = order;
    EXPECT_TRUE(placement.OnMessage(message));
  }
  void Tell(const v1::PublishMap& map) {
    v1::ControlMessage message;
    *message.mutable_publish_map() = map;
    EXPECT_TRUE(placement.OnMessage(message));
  }
  void Invite(uint64_t epoch, int position, const v1::PlaceExperts& order,
              const v1::PublishMap& map) {
    v1::ControlMessage message;
    v1::JoinEpoch& invitation = *message.mutable_join_epoch();
    invitation.set_epoch(epoch);
    invitation.set_rank(position);
    invitation.set_size(2);
    for (const int rank : {11, 10}) invitation.add_ranks(rank);
    *invitation.mutable_experts() = order;
    *invitation.mutable_map() = map;
    EXPECT_TRUE(placement.OnMessage(message));
  }
  absl::Status Advance() { return placement.Advance(exchange_); }
  absl::Status Start() { return placement.Start(exchange_); }
  uint64_t Vote() {
    exchange_.StartVote({});
    while (true) {
      const auto wave = exchange_.Outcome();
      EXPECT_TRUE(wave.ok()) << wave.status();
      if (!wave.ok() || *wave) return exchange_.map_number();
      std::this_thread::yield();
    }
  }

  InstantSlots slots;
  EpochPlacement placement{slots};

 private:
  const std::unique_ptr<kernels::Backend> backend_ = kernels::MakeReferenceBackend({});
  CollectiveExchange exchange_;
};

TEST(EpochPlacement, AnOrderWaitsUntilAllRanksUseTheMapBeforeIt) {
  cluster::RunWorld(2, [](cluster::Collective& collective) {
    const int position = collective.rank();
    const std::vector<int> own = position == 0 ? std::vector{0, 1} : std::vector{2, 3};
    Rank rank(collective);
    rank.Invite(1, position, Order(1, own), Map(1, {{11}, {11}, {10}, {10}}));
    EXPECT_TRUE(rank.placement.invited());
    rank.placement.Begin();
    EXPECT_EQ(rank.slots.held, std::set(own.begin(), own.end()));
    ASSERT_EQ(rank.Start(), absl::OkStatus());
    EXPECT_EQ(rank.Vote(), 1u);
    // Position 1 gets expert 1 beside its own; a second map moves it there, and then position 0 is
    // to drop it.
    if (position == 1) {
      rank.Tell(Order(2, {1, 2, 3}));
      ASSERT_EQ(rank.Advance(), absl::OkStatus());
      EXPECT_EQ(rank.slots.last_order, 2u);
    }
    if (position == 0) {
      rank.Tell(Map(2, {{11}, {10}, {10}, {10}}));
      rank.Tell(Order(3, {0}));
    }
    ASSERT_EQ(rank.Advance(), absl::OkStatus());
    EXPECT_EQ(rank.Vote(), 1u);  // one rank alone has the map
    ASSERT_EQ(rank.Advance(), absl::OkStatus());
    if (position == 0) {
      EXPECT_THAT(rank.slots.held, ElementsAre(0, 1));
    } else {
      rank.Tell(Map(2, {{11}, {10}, {10}, {10}}));
    }
    ASSERT_EQ(rank.Advance(), absl::OkStatus());
    EXPECT_EQ(rank.Vote(), 2u);
    ASSERT_EQ(rank.Advance(), absl::OkStatus());
    if (position == 0) {
      EXPECT_THAT(rank.slots.held, ElementsAre(0));
    }
    EXPECT_EQ(rank.placement.newest_map(), 2u);
  });
}

TEST(EpochPlacement, AMapOfExpertsThatAreNotHeldIsNeverUsed) {
  cluster::RunWorld(1, [](cluster::Collective& collective) {
    Rank rank(collective);
    rank.Invite(1, 1, Order(1, {2, 3}), Map(1, {{11}, {11}, {10}, {10}}));
    rank.placement.Begin();
    ASSERT_EQ(rank.Start(), absl::OkStatus());
    rank.Tell(Map(2, {{10}, {11}, {10}, {10}}));
    EXPECT_THAT(std::string(rank.Advance().message()),
                HasSubstr("map 2 gives expert 0 of layer 1 to this rank"));
    rank.placement.Leave();
    EXPECT_EQ(rank.placement.newest_map(), 0u);
  });
}

TEST(EpochPlacement, TheNextInvitationWaitsForTheEndOfThisEpoch) {
  cluster::RunWorld(1, [](cluster::Collective& collective) {
    Rank rank(collective);
    rank.Invite(1, 1, Order(1, {2, 3}), Map(1, {{11}, {11}, {10}, {10}}));
    rank.placement.Begin();
    ASSERT_EQ(rank.Start(), absl::OkStatus());
    rank.Invite(2, 1, Order(2, {0}), Map(1, {{10}, {11}, {11}, {11}}));
    rank.Tell(Order(3, {0, 1}));  // belongs to the next epoch
    ASSERT_EQ(rank.Advance(), absl::OkStatus());
    EXPECT_THAT(rank.slots.held, ElementsAre(2, 3));
    rank.placement.Leave();
    rank.placement.Begin();
    EXPECT_EQ(rank.slots.last_order, 3u);
    // With the link ends what it has said.
    rank.Invite(4, 1, Order(5, {0}), Map(1, {{10}, {11}, {11}, {11}}));
    rank.placement.OnLink();
    EXPECT_FALSE(rank.placement.invited());
    EXPECT_FALSE(rank.placement.may_start());
  });
}

TEST(EpochPlacement, ALaunchedEpochGoesOnInAnotherLifeOfItsRanks) {
  cluster::RunWorld(1, [](cluster::Collective& collective) {
    Rank rank(collective);
    rank.Invite(77, 1, Order(1, {2, 3}), Map(1, {{11}, {11}, {10}, {10}}));
    rank.placement.Begin();
    ASSERT_EQ(rank.Start(), absl::OkStatus());
    rank.placement.OnLink();
    rank.Invite(77, 1, Order(9, {2, 3}), Map(2, {{11}, {11}, {10}, {10}}));
    EXPECT_FALSE(rank.placement.invited());
    ASSERT_EQ(rank.Advance(), absl::OkStatus());
    EXPECT_EQ(rank.Vote(), 2u);
    ASSERT_EQ(rank.Advance(), absl::OkStatus());
    EXPECT_EQ(rank.slots.last_order, 9u);
    // Numbers rise: a map that was told before cannot come again.
    rank.Tell(Map(2, {{11}, {11}, {10}, {10}}));
    EXPECT_THAT(std::string(rank.Advance().message()), HasSubstr("map 2 follows map 2"));
  });
}

}  // namespace
}  // namespace epic::worker
