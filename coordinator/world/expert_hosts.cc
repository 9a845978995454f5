#include "coordinator/world/expert_hosts.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status.h"

namespace epic::coordinator {

void ExpertHosts::Join(int rank, int64_t slots, std::string machine, const LayerExperts& held) {
  CHECK_GE(slots, 0);
  Host& host = hosts_[rank];
  host.host = {.rank = rank, .slots = slots, .machine = std::move(machine)};
  if (!CheckHashes(rank, held).ok()) return;
  for (const v1::LayerExperts& layer : held) {
    for (const int expert : layer.experts()) host.held.insert(Id(layer.layer(), expert));
  }
  // More than its slots take was never ordered, so nothing that it says is known to be true.
  if (static_cast<int64_t>(host.held.size()) > slots) host.held.clear();
  Count();
}

void ExpertHosts::SetLeaving(int rank, bool leaving) {
  const auto at = hosts_.find(rank);
  if (at != hosts_.end()) at->second.host.leaving = leaving;
}

void ExpertHosts::Leave(int rank) {
  hosts_.erase(rank);
  Count();
}

void ExpertHosts::Count() {
  // Counted anew after each change: orders are rare, and a running count could drift.
  holder_counts_.assign(static_cast<size_t>(shape_.layer_count) * shape_.expert_count, 0);
  for (const auto& [rank, host] : hosts_) {
    for (const int id : host.held) ++holder_counts_[id];
  }
  const int64_t hosted = std::ranges::count_if(holder_counts_, [](int count) { return count > 0; });
  unhosted_count_ = shape_.expert_total() - hosted;
  unreplicated_count_ = std::ranges::count(holder_counts_, 1);
}

cluster::BalanceRequest ExpertHosts::Request(bool homes_only) const {
  cluster::BalanceRequest request{.layer_count = shape_.layer_count,
                                  .first_expert_layer = shape_.first_expert_layer,
                                  .expert_count = shape_.expert_count,
                                  .replicas_max = replicas_max_,
                                  .homes_only = homes_only,
                                  .may_move = may_move_};
  // What is being loaded counts as held, else it would be given to somebody else as well.
  request.current.resize(shape_.layer_count);
  for (int layer = shape_.first_expert_layer; layer < shape_.layer_count; ++layer) {
    request.current[layer].resize(shape_.expert_count);
  }
  for (const auto& [rank, host] : hosts_) {
    request.hosts.push_back(host.host);
    for (const int id : host.loading ? host.ordered : host.held) {
      // A load that is less urgent than those to come is given up.
      const bool urgent = holder_counts_[id] == 0;
      if (homes_only && !urgent && host.held.count(id) == 0) continue;
      request.current[id / shape_.expert_count][id % shape_.expert_count].push_back(rank);
    }
  }
  return request;
}

std::map<int, ExpertHosts::Experts> ExpertHosts::Wanted(const cluster::Replicas& desired) const {
  std::map<int, Experts> wanted;
  // A rank that is to hold nothing needs an order too, if it holds something.
  for (const auto& [rank, host] : hosts_) wanted[rank];
  for (int layer = shape_.first_expert_layer; layer < shape_.layer_count; ++layer) {
    for (int expert = 0; expert < shape_.expert_count; ++expert) {
      for (const int rank : desired[layer][expert]) {
        Experts& of_rank = wanted.at(rank);
        // Ids ascend in this walk, so each one belongs at the end.
        of_rank.insert(of_rank.end(), Id(layer, expert));
      }
    }
  }
  for (const auto& [rank, host] : hosts_) {
    Experts& of_rank = wanted.at(rank);
    for (const int id : host.held) {
      // Given to others, it stays until one of them holds it.
      const std::vector<int>& ranks = desired[id / shape_.expert_count][id % shape_.expert_count];
      const bool held_there = std::ranges::any_of(
          ranks, [&](int other) { return hosts_.at(other).held.count(id) > 0; });
      if (!held_there) of_rank.insert(id);
    }
    // What has no slot yet waits for those that are kept to go.
    // Held experts are kept in preference to new ones: a new one can be ordered again.
    auto last = of_rank.end();
    while (static_cast<int64_t>(of_rank.size()) > host.host.slots && last != of_rank.begin()) {
      --last;
      if (host.held.count(*last) == 0) last = of_rank.erase(last);
    }
  }
  return wanted;
}

v1::PlaceExperts ExpertHosts::Order(Host& host, Experts wanted) {
  v1::PlaceExperts order;
  // Numbers ascend over all ranks, so an answer to a replaced order is recognised.
  order.set_order(++last_order_);
  host.order = last_order_;
  v1::LayerExperts* layer = nullptr;
  for (const int id : wanted) {
    const int of_layer = id / shape_.expert_count;
    if (layer == nullptr || layer->layer() != of_layer) {
      layer = order.add_layers();
      layer->set_layer(of_layer);
    }
    layer->add_experts(id % shape_.expert_count);
    layer->add_hashes(proofs_->Find(of_layer, id % shape_.expert_count));
  }
  // Loads given up are planned again.
  may_move_ = may_move_ || std::ranges::any_of(host.ordered, [&](int id) {
                return wanted.count(id) == 0 && host.held.count(id) == 0;
              });
  // Not held from now on: the map that is published next must not name what the order drops.
  std::erase_if(host.held, [&](int id) { return wanted.count(id) == 0; });
  host.loading = host.held.size() < wanted.size();
  host.ordered = std::move(wanted);
  return order;
}

std::vector<std::pair<int, v1::PlaceExperts>> ExpertHosts::Plan(bool frozen) {
  std::vector<std::pair<int, v1::PlaceExperts>> orders;
  if (hosts_.empty()) return orders;
  const bool homes_only = frozen || unhosted_count_ > 0;
  const cluster::Replicas desired = cluster::Balance(Request(homes_only));
  // A plan for homes alone moves nothing, so the wish to move stays for the next plan of all.
  if (!homes_only) may_move_ = false;
  // All are decided upon what is held now: an order that drops changes it.
  std::map<int, Experts> wanted = Wanted(desired);
  for (auto& [rank, host] : hosts_) {
    Experts& experts = wanted.at(rank);
    if (experts != host.ordered) orders.emplace_back(rank, Order(host, std::move(experts)));
  }
  Count();
  return orders;
}

absl::Status ExpertHosts::CheckHashes(int rank, const LayerExperts& layers) {
  for (const v1::LayerExperts& layer : layers) {
    if (layer.layer() < shape_.first_expert_layer || layer.layer() >= shape_.layer_count) {
      return absl::InvalidArgumentError(
          absl::StrFormat("experts_ready: layer %d has no experts", layer.layer()));
    }
    if (layer.hashes_size() != 0 && layer.hashes_size() != layer.experts_size()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("experts_ready: layer %d has %d experts and %d hashes", layer.layer(),
                          layer.experts_size(), layer.hashes_size()));
    }
    for (int i = 0; i < layer.experts_size(); ++i) {
      const int expert = layer.experts(i);
      if (expert < 0 || expert >= shape_.expert_count) {
        return absl::InvalidArgumentError(
            absl::StrFormat("experts_ready: expert %d of layer %d, there are %d", expert,
                            layer.layer(), shape_.expert_count));
      }
      if (layer.hashes_size() == 0) continue;
      RETURN_IF_ERROR(proofs_->Check(rank, layer.layer(), expert, layer.hashes(i)));
    }
  }
  return absl::OkStatus();
}

absl::Status ExpertHosts::OnReady(int rank, const v1::ExpertsReady& ready) {
  const auto at = hosts_.find(rank);
  // The rank has been given another order since, or is lost.
  if (at == hosts_.end() || ready.order() != at->second.order) return absl::OkStatus();
  Host& host = at->second;
  absl::Status status = CheckHashes(rank, ready.layers());
  if (!status.ok()) {
    // Nothing of what such a rank says can be trusted.
    host.held.clear();
    Count();
    return status;
  }
  host.held = host.ordered;
  host.loading = false;
  Count();
  return absl::OkStatus();
}

void ExpertHosts::OnFailed(int rank, uint64_t order) {
  const auto at = hosts_.find(rank);
  if (at == hosts_.end() || order != at->second.order) return;
  Host& host = at->second;
  // It keeps what it had. Without free slots no plan gives it the failed load again.
  host.ordered = host.held;
  host.loading = false;
  host.host.slots = static_cast<int64_t>(host.held.size());
}

cluster::Replicas ExpertHosts::replicas() const { return ReplicasOf(&Host::held); }

cluster::Replicas ExpertHosts::ordered_replicas() const { return ReplicasOf(&Host::ordered); }

cluster::Replicas ExpertHosts::ReplicasOf(Experts Host::* experts) const {
  cluster::Replicas replicas(shape_.layer_count);
  for (int layer = shape_.first_expert_layer; layer < shape_.layer_count; ++layer) {
    replicas[layer].resize(shape_.expert_count);
  }
  for (const auto& [rank, host] : hosts_) {
    for (const int id : host.*experts) {
      // Hosts are walked by ascending rank, the order that Replicas must have.
      replicas[id / shape_.expert_count][id % shape_.expert_count].push_back(rank);
    }
  }
  return replicas;
}

int64_t ExpertHosts::Shortfall(int without) const {
  int64_t slots = 0;
  for (const auto& [rank, host] : hosts_) {
    // A leaving rank keeps experts only until others hold them, so its slots do not count.
    if (rank != without && !host.host.leaving) slots += host.host.slots;
  }
  return shape_.expert_total() - slots;
}

int64_t ExpertHosts::held_count(int rank) const {
  const auto at = hosts_.find(rank);
  return at == hosts_.end() ? 0 : static_cast<int64_t>(at->second.held.size());
}

bool ExpertHosts::loading(int rank) const {
  const auto at = hosts_.find(rank);
  return at != hosts_.end() && at->second.loading;
}

std::vector<int> ExpertHosts::loading_ranks() const {
  std::vector<int> ranks;
  for (const auto& [rank, host] : hosts_) {
    if (host.loading) ranks.push_back(rank);
  }
  return ranks;
}

bool ExpertHosts::IsOnlyHolder(int rank) const {
  const auto at = hosts_.find(rank);
  if (at == hosts_.end()) return false;
  return std::ranges::any_of(at->second.held, [&](int id) { return holder_counts_[id] == 1; });
}

}  // namespace epic::coordinator
