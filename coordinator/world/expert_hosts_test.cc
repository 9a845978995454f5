#include "coordinator/world/expert_hosts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/sim_loop.h"

namespace epic::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

uint64_t HashOf(int layer, int expert) { return 1000 * layer + expert + 1; }

// What an honest rank answers.
v1::ExpertsReady Answer(const v1::PlaceExperts& order) {
  v1::ExpertsReady ready;
  ready.set_order(order.order());
  *ready.mutable_layers() = order.layers();
  for (v1::LayerExperts& layer : *ready.mutable_layers()) {
    layer.clear_hashes();
    for (const int expert : layer.experts()) layer.add_hashes(HashOf(layer.layer(), expert));
  }
  return ready;
}

int64_t Size(const v1::PlaceExperts& order) {
  int64_t size = 0;
  for (const v1::LayerExperts& layer : order.layers()) size += layer.experts_size();
  return size;
}

class ExpertHostsTest : public testing::Test {
 protected:
  // Until nothing is left to do; returns the experts loaded.
  int64_t Settle() {
    int64_t loaded = 0;
    for (int turn = 0; turn < 20; ++turn) {
      const auto orders = hosts_.Plan();
      if (orders.empty()) return loaded;
      for (const auto& [rank, order] : orders) {
        loaded += Size(order) - hosts_.held_count(rank);
        EXPECT_TRUE(hosts_.OnReady(rank, Answer(order)).ok());
      }
    }
    ADD_FAILURE() << "it never comes to rest";
    return loaded;
  }

  ExpertProofs proofs_;
  ExpertHosts hosts_{{.layer_count = 4, .first_expert_layer = 1, .expert_count = 16}, 1, proofs_};
};

TEST_F(ExpertHostsTest, HeldIsWhatWasAnswered) {
  hosts_.Join(1, 30, "");
  hosts_.Join(2, 30, "");
  const auto orders = hosts_.Plan();
  ASSERT_EQ(orders.size(), 2u);
  EXPECT_EQ(hosts_.unhosted_count(), 48);
  EXPECT_THAT(hosts_.loading_ranks(), ElementsAre(1, 2));
  EXPECT_TRUE(hosts_.OnReady(1, Answer(orders[0].second)).ok());
  EXPECT_EQ(hosts_.unhosted_count(), 24);
  v1::ExpertsReady stale = Answer(orders[1].second);
  stale.set_order(77);
  EXPECT_TRUE(hosts_.OnReady(2, stale).ok());
  EXPECT_EQ(hosts_.unhosted_count(), 24);
  EXPECT_TRUE(hosts_.OnReady(2, Answer(orders[1].second)).ok());
  EXPECT_EQ(hosts_.unhosted_count(), 0);
  EXPECT_EQ(hosts_.unreplicated_count(), 48);
  EXPECT_TRUE(hosts_.Plan().empty());
}

TEST_F(ExpertHostsTest, ALossIsLoadedBySurvivorsWithTheKnownHashes) {
  for (const int rank : {1, 2, 3}) hosts_.Join(rank, 24, "");
  Settle();
  EXPECT_EQ(hosts_.Shortfall(3), 0);
  EXPECT_TRUE(hosts_.IsOnlyHolder(3));
  hosts_.Leave(3);
  EXPECT_EQ(hosts_.unhosted_count(), 16);
  const auto orders = hosts_.Plan();
  ASSERT_EQ(orders.size(), 2u);
  for (const auto& [rank, order] : orders) {
    EXPECT_EQ(Size(order), 24);
    for (const v1::LayerExperts& layer : order.layers()) {
      for (int i = 0; i < layer.experts_size(); ++i) {
        EXPECT_EQ(layer.hashes(i), HashOf(layer.layer(), layer.experts(i)));
      }
    }
    EXPECT_EQ(hosts_.held_count(rank), 16);
    EXPECT_TRUE(hosts_.OnReady(rank, Answer(order)).ok());
  }
  EXPECT_EQ(hosts_.unhosted_count(), 0);
}

TEST_F(ExpertHostsTest, OtherBytesAreNamedAndHoldNothing) {
  hosts_.Join(1, 48, "");
  Settle();
  hosts_.Join(2, 48, "");
  hosts_.Leave(1);
  auto orders = hosts_.Plan();
  v1::ExpertsReady wrong = Answer(orders.at(0).second);
  wrong.mutable_layers(0)->set_hashes(3, 0xbad);
  const absl::Status status = hosts_.OnReady(2, wrong);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("expert 3 of layer 1"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1"));
  EXPECT_EQ(hosts_.held_count(2), 0);
}

TEST_F(ExpertHostsTest, ImpossibleAnswersAreRefused) {
  hosts_.Join(1, 48, "");
  const auto orders = hosts_.Plan();
  for (const auto& spoil : std::vector<std::function<void(v1::LayerExperts&)>>{
           [](auto& layer) { layer.set_layer(0); }, [](auto& layer) { layer.set_layer(4); },
           [](auto& layer) { layer.set_layer(-1); }, [](auto& layer) { layer.set_experts(0, 16); },
           [](auto& layer) { layer.set_experts(0, -1); },
           [](auto& layer) { layer.add_hashes(1); }}) {
    v1::ExpertsReady ready = Answer(orders[0].second);
    spoil(*ready.mutable_layers(0));
    EXPECT_EQ(hosts_.OnReady(1, ready).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(ExpertHostsTest, ANewRankTakesItsShareAndNothingIsUnhostedMeanwhile) {
  hosts_.Join(1, 48, "");
  hosts_.Join(2, 48, "");
  Settle();
  hosts_.Join(3, 48, "");
  EXPECT_TRUE(hosts_.Plan().empty());
  hosts_.AllowMoves();
  const auto orders = hosts_.Plan();
  ASSERT_EQ(orders.size(), 1u);
  EXPECT_EQ(orders[0].first, 3);
  EXPECT_EQ(hosts_.unhosted_count(), 0);
  EXPECT_TRUE(hosts_.OnReady(3, Answer(orders[0].second)).ok());
  EXPECT_EQ(hosts_.unreplicated_count(), 48 - 15);
  EXPECT_EQ(Settle(), 0);
  EXPECT_EQ(hosts_.unreplicated_count(), 48);
  for (const int rank : {1, 2, 3}) EXPECT_NEAR(hosts_.held_count(rank), 16, 2);
}

TEST_F(ExpertHostsTest, ALossComesBeforeAMoveThatIsUnderWay) {
  hosts_.Join(1, 48, "");
  hosts_.Join(2, 48, "");
  Settle();
  hosts_.Join(3, 48, "");
  hosts_.AllowMoves();
  ASSERT_EQ(Size(hosts_.Plan().at(0).second), 15);
  hosts_.Leave(2);
  int64_t loads = 0;
  for (const auto& [rank, order] : hosts_.Plan()) {
    loads += Size(order) - hosts_.held_count(rank);
    EXPECT_TRUE(hosts_.OnReady(rank, Answer(order)).ok());
  }
  EXPECT_EQ(loads, 24);
  EXPECT_EQ(hosts_.unhosted_count(), 0);
  Settle();
  EXPECT_NEAR(hosts_.held_count(3), 24, 2);
  EXPECT_EQ(hosts_.unreplicated_count(), 48);
}

TEST_F(ExpertHostsTest, FrozenOnlyHomesAreLoaded) {
  hosts_.Join(1, 48, "");
  Settle();
  hosts_.Join(2, 48, "");
  hosts_.AllowMoves();
  EXPECT_TRUE(hosts_.Plan(/*frozen=*/true).empty());
  hosts_.Leave(1);
  EXPECT_EQ(Size(hosts_.Plan(/*frozen=*/true).at(0).second), 48);
}

TEST_F(ExpertHostsTest, ALeavingRankKeepsWhatNobodyElseHolds) {
  for (const int rank : {1, 2, 3}) hosts_.Join(rank, 24, "");
  Settle();
  hosts_.SetLeaving(2, true);
  auto orders = hosts_.Plan();
  EXPECT_EQ(hosts_.held_count(2), 16);
  EXPECT_EQ(hosts_.unhosted_count(), 0);
  for (const auto& [rank, order] : orders) EXPECT_TRUE(hosts_.OnReady(rank, Answer(order)).ok());
  Settle();
  EXPECT_EQ(hosts_.held_count(2), 0);
  EXPECT_EQ(hosts_.unhosted_count(), 0);
}

TEST_F(ExpertHostsTest, WhatARankCannotLoadOthersDo) {
  hosts_.Join(1, 30, "");
  hosts_.Join(2, 48, "");
  const auto orders = hosts_.Plan();
  hosts_.OnFailed(1, orders[0].second.order());
  EXPECT_TRUE(hosts_.OnReady(2, Answer(orders[1].second)).ok());
  Settle();
  EXPECT_EQ(hosts_.held_count(1), 0);
  EXPECT_EQ(hosts_.held_count(2), 48);
}

TEST(ExpertHostsReplicasTest, ReplicasComeWhenAllHaveAHome) {
  ExpertProofs proofs;
  ExpertHosts hosts({.layer_count = 2, .first_expert_layer = 0, .expert_count = 6}, 2, proofs);
  hosts.Join(1, 12, "");
  hosts.Join(2, 12, "");
  for (const int64_t unreplicated : {12, 0}) {
    const auto orders = hosts.Plan();
    for (const auto& [rank, order] : orders) EXPECT_TRUE(hosts.OnReady(rank, Answer(order)).ok());
    EXPECT_EQ(hosts.unhosted_count(), 0);
    EXPECT_EQ(hosts.unreplicated_count(), unreplicated);
  }
  EXPECT_TRUE(hosts.Plan().empty());
  hosts.Leave(1);
  EXPECT_EQ(hosts.unhosted_count(), 0);
}

TEST(ExpertHostsHistoryTest, OrdersNeverPassSlotsAndAllIsHeldWhenItFits) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SeededRandom random(seed);
    const auto below = [&](uint64_t n) { return static_cast<int>(random.Next() % n); };
    ExpertProofs proofs;
    ExpertHosts hosts({.layer_count = 3, .first_expert_layer = 1, .expert_count = 12},
                      1 + below(3), proofs);
    std::map<int, int64_t> slots;
    std::map<int, v1::PlaceExperts> orders;
    const auto plan = [&] {
      for (const auto& [rank, order] : hosts.Plan()) {
        ASSERT_LE(Size(order), slots.at(rank)) << "seed " << seed;
        orders[rank] = order;
      }
    };
    for (int step = 0; step < 40; ++step) {
      const int kind = below(4);
      if (slots.empty() || kind == 0) {
        slots[step] = below(40);
        hosts.Join(step, slots[step], below(2) == 0 ? "a" : "b");
        hosts.AllowMoves();
      } else if (kind == 1) {
        const int rank = std::next(slots.begin(), below(slots.size()))->first;
        hosts.Leave(rank);
        slots.erase(rank);
        orders.erase(rank);
      } else if (!orders.empty()) {
        const auto at = std::next(orders.begin(), below(orders.size()));
        ASSERT_TRUE(hosts.OnReady(at->first, Answer(at->second)).ok());
        orders.erase(at);
      }
      ASSERT_NO_FATAL_FAILURE(plan());
    }
    for (int turn = 0; !orders.empty(); ++turn) {
      ASSERT_LT(turn, 200) << "seed " << seed << ": it never comes to rest";
      ASSERT_TRUE(hosts.OnReady(orders.begin()->first, Answer(orders.begin()->second)).ok());
      orders.erase(orders.begin());
      ASSERT_NO_FATAL_FAILURE(plan());
    }
    if (hosts.Shortfall() <= 0) {
      EXPECT_EQ(hosts.unhosted_count(), 0) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace epic::coordinator
