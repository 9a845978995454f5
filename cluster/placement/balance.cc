#include "cluster/placement/balance.h"

#include <algorithm>
#include <optional>
#include <queue>
#include <tuple>
#include <utility>

#include "base/check.h"

namespace epic::cluster {
namespace {

// Ranks of a layer whose loads differ by less than this part of the mean are even enough.
// A move costs the load of an expert, so small gains are not worth one. Chosen, not measured.
constexpr double kUneven = 0.1;

class Balancer {
 public:
  explicit Balancer(const BalanceRequest& request) : request_(request) {
    CHECK(request.first_expert_layer >= 0 && request.first_expert_layer <= request.layer_count)
        << " layers " << request.first_expert_layer << " to " << request.layer_count;
    CHECK_GE(request.replicas_max, 1);
    CHECK(std::ranges::is_sorted(request.hosts, {}, &ExpertHost::rank)) << " out of order";
    for (const ExpertHost& host : request.hosts) {
      // A leaving rank is no host: what it holds finds another home.
      if (!host.leaving) hosts_.push_back(&host);
    }
    used_.resize(hosts_.size());
    layer_load_.resize(hosts_.size(), std::vector<double>(request.layer_count));
    holders_.resize(static_cast<size_t>(request.layer_count) * request.expert_count);
  }

  Replicas Run() {
    // In order of importance: what is held stays, every expert has a home, loads are even, hot
    // experts have replicas. Each step uses only what the steps before left free.
    Keep();
    HostMissing();
    if (request_.homes_only) return Result();
    if (request_.may_move) {
      for (int layer = request_.first_expert_layer; layer < request_.layer_count; ++layer) {
        Even(layer);
      }
    }
    Replicate();
    return Result();
  }

 private:
  using Holders = std::vector<int>;  // indices of hosts_, ascending

  Holders& At(int layer, int expert) { return holders_[layer * request_.expert_count + expert]; }
  double WeightOf(int layer, int expert) const {
    return request_.weights.empty() ? 1 : request_.weights[layer][expert];
  }
  // Over all experts, in order of layer and expert.
  template <class Visit>
  void ForEach(Visit visit) {
    for (int layer = request_.first_expert_layer; layer < request_.layer_count; ++layer) {
      for (int expert = 0; expert < request_.expert_count; ++expert) visit(layer, expert);
    }
  }

  // A replica takes an equal share of its expert's load.
  void Share(int layer, int expert, double sign) {
    const Holders& holders = At(layer, expert);
    for (const int host : holders) {
      layer_load_[host][layer] +=
          sign * WeightOf(layer, expert) / static_cast<double>(holders.size());
    }
  }
  void Add(int layer, int expert, int host) {
    Share(layer, expert, -1);
    Holders& holders = At(layer, expert);
    holders.insert(std::ranges::lower_bound(holders, host), host);
    ++used_[host];
    Share(layer, expert, 1);
  }
  void Remove(int layer, int expert, int host) {
    Share(layer, expert, -1);
    Holders& holders = At(layer, expert);
    holders.erase(std::ranges::find(holders, host));
    --used_[host];
    Share(layer, expert, 1);
  }
  bool Holds(int layer, int expert, int host) {
    return std::ranges::binary_search(At(layer, expert), host);
  }
  bool HasRoom(int host) const { return used_[host] < hosts_[host]->slots; }

  void Keep() {
    if (request_.current.empty()) return;
    CHECK_EQ(request_.current.size(), static_cast<size_t>(request_.layer_count));
    ForEach([&](int layer, int expert) {
      for (const int rank : request_.current[layer][expert]) {
        // Ranks that are no hosts any more are passed over.
        const auto found = std::ranges::lower_bound(hosts_, rank, {}, &ExpertHost::rank);
        if (found == hosts_.end() || (*found)->rank != rank) continue;
        const int host = static_cast<int>(found - hosts_.begin());
        if (HasRoom(host)) Add(layer, expert, host);
      }
    });
    // A move leaves two behind until the old one goes: that of the rank with more to do.
    ForEach([&](int layer, int expert) {
      const Holders& holders = At(layer, expert);
      while (static_cast<int>(holders.size()) > request_.replicas_max) {
        Remove(layer, expert, *std::ranges::max_element(holders, {}, [&](int host) {
                 return std::tuple{layer_load_[host][layer], used_[host], host};
               }));
      }
    });
  }

  // The host that gets another replica: the least loaded in the layer, then the emptiest.
  std::optional<int> Choose(int layer, int expert) {
    std::optional<std::tuple<bool, double, int64_t, int>> best;
    for (int host = 0; host < static_cast<int>(hosts_.size()); ++host) {
      if (!HasRoom(host) || Holds(layer, expert, host)) continue;
      // Another machine first, so that one loss of power does not take all replicas; the index
      // last, so that equal requests give equal results.
      const std::tuple candidate{SharesMachine(layer, expert, host), layer_load_[host][layer],
                                 used_[host], host};
      if (!best || candidate < *best) best = candidate;
    }
    if (!best) return std::nullopt;
    return std::get<3>(*best);
  }
  bool SharesMachine(int layer, int expert, int host) {
    const std::string& machine = hosts_[host]->machine;
    return std::ranges::any_of(At(layer, expert), [&](int other) {
      return !machine.empty() && hosts_[other]->machine == machine;
    });
  }

  void HostMissing() {
    std::vector<std::tuple<int, double, int>> missing;  // layer, -load, expert
    ForEach([&](int layer, int expert) {
      if (At(layer, expert).empty()) missing.emplace_back(layer, -WeightOf(layer, expert), expert);
    });
    std::ranges::sort(missing);
    int64_t room = 0;
    for (size_t host = 0; host < hosts_.size(); ++host) room += hosts_[host]->slots - used_[host];
    // A home for every expert comes before a second replica of any.
    MakeRoom(static_cast<int64_t>(missing.size()) - room);
    for (const auto& [layer, load, expert] : missing) {
      const std::optional<int> host = Choose(layer, expert);
      if (host) Add(layer, expert, *host);
    }
  }

  // Drops `count` replicas beyond the first, those of the coldest experts first.
  void MakeRoom(int64_t count) {
    while (count > 0) {
      std::vector<std::tuple<double, int, int>> spare;
      ForEach([&](int layer, int expert) {
        const size_t replicas = At(layer, expert).size();
        if (replicas < 2) return;
        spare.emplace_back(WeightOf(layer, expert) / static_cast<double>(replicas), layer, expert);
      });
      if (spare.empty()) return;
      std::ranges::sort(spare);
      for (const auto& [share, layer, expert] : spare) {
        if (count-- <= 0) return;
        const Holders& holders = At(layer, expert);
        const int fullest = *std::ranges::max_element(holders, {}, [&](int host) {
          return std::pair{used_[host], host};
        });
        Remove(layer, expert, fullest);
      }
    }
  }

  // Moves experts from the rank with the most load in the layer to the one with the least.
  void Even(int layer) {
    if (hosts_.empty()) return;
    double sum = 0;
    for (const auto& load : layer_load_) sum += load[layer];
    const double enough = kUneven * sum / static_cast<double>(hosts_.size());
    // Each move lowers the sum of squares of loads, so this ends; the limit is for rounding.
    for (int move = 0; move < request_.expert_count; ++move) {
      const auto key = [&](int host) { return std::pair{layer_load_[host][layer], used_[host]}; };
      int most = 0, least = -1;
      for (int host = 0; host < static_cast<int>(hosts_.size()); ++host) {
        if (key(host) > key(most)) most = host;
        if (HasRoom(host) && (least < 0 || key(host) < key(least))) least = host;
      }
      if (least < 0) return;
      const double gap = layer_load_[most][layer] - layer_load_[least][layer];
      if (gap <= enough) return;
      const std::optional<int> expert = BestMove(layer, most, least, gap);
      if (!expert) return;
      Remove(layer, *expert, most);
      Add(layer, *expert, least);
    }
  }

  // The expert of `from` whose share comes nearest to half the gap, if moving it narrows the gap.
  std::optional<int> BestMove(int layer, int from, int to, double gap) {
    std::optional<std::pair<double, int>> best;
    for (int expert = 0; expert < request_.expert_count; ++expert) {
      if (!Holds(layer, expert, from) || Holds(layer, expert, to)) continue;
      const double share = WeightOf(layer, expert) / static_cast<double>(At(layer, expert).size());
      // The gap after the move. The factor keeps rounding from moving one expert for ever.
      const double left = std::abs(gap - 2 * share);
      if (left >= gap * (1 - 1e-9)) continue;
      if (!best || left < best->first) best = {left, expert};
    }
    if (!best) return std::nullopt;
    return best->second;
  }

  // Greedy EPLB: the next replica goes to the expert whose replicas have the most to do.
  void Replicate() {
    std::priority_queue<std::tuple<double, int, int>>
        hottest;  // load of a replica, -layer, -expert
    ForEach([&](int layer, int expert) { Push(layer, expert, hottest); });
    while (!hottest.empty()) {
      const auto [load, minus_layer, minus_expert] = hottest.top();
      hottest.pop();
      const std::optional<int> host = Choose(-minus_layer, -minus_expert);
      // No slot for this expert; a colder one may still find one elsewhere.
      if (!host) continue;
      Add(-minus_layer, -minus_expert, *host);
      Push(-minus_layer, -minus_expert, hottest);
    }
  }
  void Push(int layer, int expert, std::priority_queue<std::tuple<double, int, int>>& queue) {
    const auto replicas = static_cast<int>(At(layer, expert).size());
    if (replicas == 0 || replicas >= request_.replicas_max) return;
    queue.emplace(WeightOf(layer, expert) / replicas, -layer, -expert);
  }

  Replicas Result() {
    Replicas result(request_.layer_count);
    for (int layer = request_.first_expert_layer; layer < request_.layer_count; ++layer) {
      result[layer].resize(request_.expert_count);
    }
    ForEach([&](int layer, int expert) {
      for (const int host : At(layer, expert)) {
        result[layer][expert].push_back(hosts_[host]->rank);
      }
    });
    return result;
  }

  const BalanceRequest& request_;
  std::vector<const ExpertHost*> hosts_;         // those that stay
  std::vector<int64_t> used_;                    // slots, by host
  std::vector<std::vector<double>> layer_load_;  // [host][layer]
  std::vector<Holders> holders_;                 // [layer * expert_count + expert]
};

}  // namespace

Replicas Balance(const BalanceRequest& request) { return Balancer(request).Run(); }

}  // namespace epic::cluster
