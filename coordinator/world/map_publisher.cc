#include "coordinator/world/map_publisher.h"

#include <algorithm>

#include "base/check.h"
#include "cluster/join_token.h"

namespace epic::coordinator {
namespace {

bool SameLife(const cluster::RankEntry& a, const cluster::RankEntry& b) {
  return a.rank == b.rank && a.generation == b.generation;
}

}  // namespace

std::optional<MapPublisher::Messages> MapPublisher::Publish(std::vector<cluster::RankEntry> ranks,
                                                            cluster::Replicas replicas) {
  cluster::ExpertMap next{.ranks = std::move(ranks), .replicas = std::move(replicas)};
  const bool first = map_.version.number == 0;
  // The first map must be complete (protocol.md 6.1): ranks take sequences as soon as a map names
  // them.
  if ((first || options_.complete_only) && next.unhosted_count() > 0) return std::nullopt;
  const bool same =
      next.replicas == map_.replicas && std::ranges::equal(next.ranks, map_.ranks, SameLife);
  if (!first && same) return std::nullopt;
  // Ranks keep the newest map that they were told, so numbers may only rise.
  next.version = {options_.term, std::max(map_.version.number, options_.last_number) + 1};
  CHECK(map_.version < next.version);
  map_ = std::move(next);
  Messages messages;
  messages.reserve(map_.ranks.size());
  for (const cluster::RankEntry& told : map_.ranks) {
    v1::PublishMap& message = messages.emplace_back(told.rank, ToMessage(map_, told)).second;
    // A key goes to the two ranks of its pair alone.
    for (v1::MapRank& entry : *message.mutable_ranks()) {
      if (entry.rank() != told.rank) entry.set_pair_key(PairKey(entry.rank(), told.rank));
    }
  }
  return messages;
}

const std::string& MapPublisher::PairKey(int a, int b) {
  std::string& key = pair_keys_[std::minmax(a, b)];
  // Every map names every pair, and a key costs an HMAC, so keys are kept.
  if (key.empty() && !options_.pair_secret.empty()) {
    key = cluster::PairKey(options_.pair_secret, options_.term, a, b);
  }
  return key;
}

void MapPublisher::Forget(int rank) {
  std::erase_if(pair_keys_, [rank](const auto& entry) {
    return entry.first.first == rank || entry.first.second == rank;
  });
}

}  // namespace epic::coordinator
