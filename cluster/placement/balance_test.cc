#include "cluster/placement/balance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "base/sim_loop.h"

namespace epic::cluster {
namespace {

BalanceRequest World(int layers, int experts, const std::vector<int64_t>& slots) {
  BalanceRequest request{.layer_count = layers, .first_expert_layer = 1, .expert_count = experts};
  for (size_t i = 0; i < slots.size(); ++i) {
    request.hosts.push_back({.rank = static_cast<int>(i) + 2, .slots = slots[i]});
  }
  return request;
}

std::map<int, int64_t> Counts(const Replicas& replicas, int layer = -1) {
  std::map<int, int64_t> counts;
  for (size_t l = 0; l < replicas.size(); ++l) {
    if (layer >= 0 && layer != static_cast<int>(l)) continue;
    for (const auto& ranks : replicas[l]) {
      for (const int rank : ranks) ++counts[rank];
    }
  }
  return counts;
}

int64_t Spread(const std::map<int, int64_t>& counts) {
  std::vector<int64_t> values;
  for (const auto& [rank, count] : counts) values.push_back(count);
  return *std::ranges::max_element(values) - *std::ranges::min_element(values);
}

// An expert that a rank is to load.
struct Load {
  int rank = 0;
  int layer = 0;
  int expert = 0;
};

struct Result {
  Replicas replicas;
  std::vector<Load> loads;     // in `replicas` and not in the request's `current`
  int64_t unhosted_count = 0;  // experts for which no slot is left
};

Result Solve(const BalanceRequest& request) {
  Result result{.replicas = Balance(request)};
  for (int layer = request.first_expert_layer; layer < request.layer_count; ++layer) {
    for (int expert = 0; expert < request.expert_count; ++expert) {
      const std::vector<int>& ranks = result.replicas[layer][expert];
      result.unhosted_count += ranks.empty() ? 1 : 0;
      for (const int rank : ranks) {
        const bool held = !request.current.empty() &&
                          std::ranges::count(request.current[layer][expert], rank) > 0;
        if (!held) result.loads.push_back({rank, layer, expert});
      }
    }
  }
  return result;
}

// What holds of every result.
void Check(const BalanceRequest& request, const Result& balanced) {
  const std::map<int, int64_t> counts = Counts(balanced.replicas);
  int64_t slots = 0, experts = 0;
  for (const ExpertHost& host : request.hosts) {
    if (host.leaving) {
      ASSERT_EQ(counts.count(host.rank), 0u);
      continue;
    }
    slots += host.slots;
    if (counts.count(host.rank) > 0) {
      ASSERT_LE(counts.at(host.rank), host.slots);
    }
  }
  for (int layer = 0; layer < request.layer_count; ++layer) {
    const bool dense = layer < request.first_expert_layer;
    ASSERT_EQ(balanced.replicas[layer].size(), dense ? 0u : request.expert_count);
    for (size_t expert = 0; expert < balanced.replicas[layer].size(); ++expert) {
      ++experts;
      const auto& ranks = balanced.replicas[layer][expert];
      ASSERT_TRUE(std::ranges::is_sorted(ranks, std::ranges::less_equal()));
    }
  }
  ASSERT_EQ(balanced.unhosted_count, std::max<int64_t>(0, experts - slots));
}

TEST(BalanceTest, AnUnevenCountIsSpreadInEachLayerAndOverAll) {
  const BalanceRequest request = World(7, 32, {100, 100, 100, 100, 100});
  const Result balanced = Solve(request);
  Check(request, balanced);
  EXPECT_EQ(balanced.unhosted_count, 0);
  for (int layer = 1; layer < 7; ++layer) EXPECT_LE(Spread(Counts(balanced.replicas, layer)), 1);
  EXPECT_LE(Spread(Counts(balanced.replicas)), 1);
}

TEST(BalanceTest, ALossMovesTheLostExpertsAlone) {
  BalanceRequest request = World(5, 32, {50, 50, 50, 50});
  const Result before = Solve(request);
  const int64_t lost = Counts(before.replicas).at(3);
  request.hosts.erase(request.hosts.begin() + 1);
  request.current = before.replicas;
  const Result after = Solve(request);
  Check(request, after);
  EXPECT_EQ(after.unhosted_count, 0);
  EXPECT_EQ(static_cast<int64_t>(after.loads.size()), lost);
  for (int layer = 1; layer < 5; ++layer) EXPECT_LE(Spread(Counts(after.replicas, layer)), 1);
}

TEST(BalanceTest, ReplicasTakeOverWithoutALoad) {
  BalanceRequest request = World(3, 8, {16, 16, 16});
  request.replicas_max = 2;
  const Result before = Solve(request);
  for (int layer = 1; layer < 3; ++layer) {
    for (const auto& ranks : before.replicas[layer]) EXPECT_EQ(ranks.size(), 2u);
  }
  request.hosts.pop_back();
  request.current = before.replicas;
  request.replicas_max = 1;
  EXPECT_TRUE(Solve(request).loads.empty());
}

TEST(BalanceTest, SpareReplicasMakeRoomForLostExperts) {
  // 8 experts; rank 2 has 6 of them, rank 3 all slots full of replicas of those.
  BalanceRequest request = World(2, 8, {6, 6});
  request.current = {{}, {{2, 3}, {2, 3}, {2, 3}, {2, 3}, {2}, {2}, {}, {}}};
  const Result balanced = Solve(request);
  Check(request, balanced);
  EXPECT_EQ(balanced.unhosted_count, 0);
  EXPECT_EQ(balanced.loads.size(), 2u);
}

TEST(BalanceTest, TheHottestExpertsGetTheSlotsThatAreLeft) {
  BalanceRequest request = World(2, 4, {2, 2, 2, 2});
  request.weights = {{}, {1, 50, 1, 20}};
  request.replicas_max = 4;
  const Result balanced = Solve(request);
  Check(request, balanced);
  const auto& ranks = balanced.replicas[1];
  // 8 slots: loads of a replica after the four homes are 50, 25, 20, 16.7.
  EXPECT_EQ(ranks[1].size(), 4u);
  EXPECT_EQ(ranks[3].size(), 2u);
}

TEST(BalanceTest, ReplicasAreOnSeveralMachines) {
  BalanceRequest request = World(3, 16, {20, 20, 20, 20});
  for (size_t i = 0; i < 4; ++i) request.hosts[i].machine = i % 2 == 0 ? "a" : "b";
  request.replicas_max = 2;
  const Result balanced = Solve(request);
  Check(request, balanced);
  for (int layer = 1; layer < 3; ++layer) {
    for (const auto& ranks : balanced.replicas[layer]) {
      ASSERT_EQ(ranks.size(), 2u);
      EXPECT_NE(ranks[0] % 2, ranks[1] % 2);
    }
  }
}

TEST(BalanceTest, ANewRankTakesItsShareOnlyWhenExpertsMayMove) {
  BalanceRequest request = World(4, 30, {90, 90});
  request.current = Solve(request).replicas;
  request.hosts.push_back({.rank = 9, .slots = 90});
  EXPECT_TRUE(Solve(request).loads.empty());
  request.may_move = true;
  const Result balanced = Solve(request);
  Check(request, balanced);
  EXPECT_EQ(Counts(balanced.replicas).at(9), 30);
  EXPECT_EQ(balanced.loads.size(), 30u);
  // And then it is at rest.
  request.current = balanced.replicas;
  EXPECT_TRUE(Solve(request).loads.empty());
}

TEST(BalanceTest, ALeavingRankGivesAllUp) {
  BalanceRequest request = World(3, 16, {20, 20, 20});
  request.current = Solve(request).replicas;
  request.hosts[1].leaving = true;
  const Result balanced = Solve(request);
  Check(request, balanced);
  EXPECT_EQ(balanced.unhosted_count, 0);
  EXPECT_EQ(balanced.loads.size(), static_cast<size_t>(Counts(request.current).at(3)));
}

TEST(BalanceTest, AnyHistoryOfJoinsAndLossesKeepsThePromises) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SeededRandom random(seed);
    const auto below = [&](uint64_t n) { return static_cast<int>(random.Next() % n); };
    BalanceRequest request = World(1 + below(5), 1 + below(40), {});
    int next_rank = 0;
    for (int step = 0; step < 12; ++step) {
      if (request.hosts.empty() || below(2) == 0) {
        request.hosts.push_back({.rank = next_rank++,
                                 .slots = below(80),
                                 .machine = below(2) == 0 ? "a" : "b",
                                 .leaving = below(8) == 0});
      } else {
        request.hosts.erase(request.hosts.begin() + below(request.hosts.size()));
      }
      request.replicas_max = 1 + below(3);
      request.may_move = below(2) == 0;
      request.homes_only = below(4) == 0;
      request.weights.clear();
      if (below(2) == 0) {
        request.weights.assign(request.layer_count, std::vector<double>(request.expert_count));
        for (auto& layer : request.weights) {
          std::ranges::generate(layer, [&] { return below(100); });
        }
      }
      const Result balanced = Solve(request);
      ASSERT_NO_FATAL_FAILURE(Check(request, balanced)) << "seed " << seed << " step " << step;
      ASSERT_EQ(Solve(request).replicas, balanced.replicas);
      if (!request.may_move && request.replicas_max == 1 && !request.current.empty()) {
        for (const Load& move : balanced.loads) {
          for (const int rank : request.current[move.layer][move.expert]) {
            const auto host = std::ranges::find(request.hosts, rank, &ExpertHost::rank);
            ASSERT_TRUE(host == request.hosts.end() || host->leaving);
          }
        }
      }
      request.current = balanced.replicas;
    }
  }
}

}  // namespace
}  // namespace epic::cluster
