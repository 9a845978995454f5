#include "cluster/placement/expert_map.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace epic::cluster {
namespace {

// Ascending, so that Find may search by halves, and each rank at most once.
absl::Status CheckRanks(const ExpertMap& map) {
  int last = -1;
  for (const RankEntry& entry : map.ranks) {
    if (entry.rank <= last) {
      return absl::InvalidArgumentError(
          absl::StrCat("map.ranks: rank ", entry.rank, " follows rank ", last));
    }
    last = entry.rank;
  }
  return absl::OkStatus();
}

// The message is flat: counts, and all ranks in one row. Both come from another process, so each
// count is held against what is left before it is used.
absl::Status ReadLayer(const v1::MapLayer& layer, int number, ExpertMap& map) {
  auto& of_layer = map.replicas.emplace_back();
  of_layer.reserve(layer.counts_size());
  auto next = layer.ranks().begin();
  for (const int count : layer.counts()) {
    if (count < 0 || count > layer.ranks().end() - next) {
      return absl::InvalidArgumentError(
          absl::StrCat("map.layers[", number, "].counts[", of_layer.size(), "] is ", count,
                       ", and ", layer.ranks().end() - next, " ranks are left"));
    }
    of_layer.emplace_back(next, next + count);
    next += count;
  }
  if (next == layer.ranks().end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("map.layers[", number, "].ranks has ",
                                                 layer.ranks_size(), ", its counts add up to ",
                                                 next - layer.ranks().begin()));
}

// What later code relies on without looking again: layers with experts have equally many, replicas
// ascend (so no rank stands twice), and each is a rank of this map that holds experts.
absl::Status CheckReplicas(const ExpertMap& map) {
  size_t experts = 0;
  for (size_t layer = 0; layer < map.replicas.size(); ++layer) {
    const auto& of_layer = map.replicas[layer];
    if (of_layer.empty()) continue;  // a dense layer
    if (experts != 0 && of_layer.size() != experts) {
      return absl::InvalidArgumentError(absl::StrCat(
          "map.layers[", layer, "] has ", of_layer.size(), " experts, others ", experts));
    }
    experts = of_layer.size();
    for (size_t expert = 0; expert < of_layer.size(); ++expert) {
      for (const int rank : of_layer[expert]) {
        const RankEntry* entry = map.Find(rank);
        if (entry != nullptr && entry->experts) continue;
        return absl::InvalidArgumentError(absl::StrCat("map.layers[", layer, "].experts[", expert,
                                                       "] names rank ", rank,
                                                       ", which holds no experts in this map"));
      }
      if (!std::ranges::is_sorted(of_layer[expert], std::ranges::less_equal())) {
        return absl::InvalidArgumentError(
            absl::StrCat("map.layers[", layer, "].experts[", expert, "]: its ranks do not ascend"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

const RankEntry* ExpertMap::Find(int rank) const {
  CHECK_GE(rank, -1) << "ranks are counted from 0; -1 is none";
  const auto found = std::ranges::lower_bound(ranks, rank, {}, &RankEntry::rank);
  return found != ranks.end() && found->rank == rank ? &*found : nullptr;
}

int ExpertMap::unhosted_count() const {
  int count = 0;
  for (const auto& of_layer : replicas) {
    for (const auto& of_expert : of_layer) count += of_expert.empty() ? 1 : 0;
  }
  return count;
}

absl::StatusOr<ExpertMap> ExpertMapFrom(const v1::PublishMap& message) {
  ExpertMap map;
  map.version = {message.term(), message.number()};
  for (const v1::MapRank& from : message.ranks()) {
    map.ranks.push_back({{.rank = from.rank(),
                          .generation = from.generation(),
                          .host = from.host(),
                          .run_dir = from.run_dir(),
                          .address = from.address(),
                          .pair_key = from.pair_key()},
                         from.attention(),
                         from.experts()});
  }
  for (const v1::MapLayer& layer : message.layers()) {
    RETURN_IF_ERROR(ReadLayer(layer, static_cast<int>(map.replicas.size()), map));
  }
  RETURN_IF_ERROR(CheckRanks(map));
  RETURN_IF_ERROR(CheckReplicas(map));
  return map;
}

v1::PublishMap ToMessage(const ExpertMap& map, const RankEntry& told) {
  v1::PublishMap message;
  message.set_term(map.version.term);
  message.set_number(map.version.number);
  for (const RankEntry& entry : map.ranks) {
    // The rest is none of its business: links, and so this message, grow with its partners alone.
    if (entry.rank != told.rank && !entry.ExchangesWith(told)) continue;
    v1::MapRank& to = *message.add_ranks();
    to.set_rank(entry.rank);
    to.set_generation(entry.generation);
    to.set_attention(entry.attention);
    to.set_experts(entry.experts);
    to.set_host(entry.host);
    to.set_run_dir(entry.run_dir);
    to.set_address(entry.address);
    to.set_pair_key(entry.pair_key);
  }
  // Only an owner of rows chooses hosts.
  if (!told.attention) return message;
  for (const auto& of_layer : map.replicas) {
    v1::MapLayer& layer = *message.add_layers();
    for (const auto& of_expert : of_layer) {
      layer.add_counts(static_cast<int32_t>(of_expert.size()));
      layer.mutable_ranks()->Add(of_expert.begin(), of_expert.end());
    }
  }
  return message;
}

}  // namespace epic::cluster
