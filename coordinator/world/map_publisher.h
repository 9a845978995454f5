// MapPublisher: numbers the maps of ranks that exchange rows with each other, and writes each map
// as the messages that tell every rank its part. A plain object.
//
//   if (auto messages = publisher.Publish(ranks, replicas)) …;  // to be sent, before later orders
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cluster/placement/balance.h"
#include "cluster/placement/expert_map.h"
#include "proto/epic/v1/worker.pb.h"

namespace epic::coordinator {

class MapPublisher {
 public:
  // `pair_secret`: from which the keys of pairs are made; empty: pairs have none.
  MapPublisher(uint64_t term, std::string pair_secret)
      : term_(term), pair_secret_(std::move(pair_secret)) {}

  using Messages = std::vector<std::pair<int, v1::PublishMap>>;  // (rank, its part)

  // The messages of a new map; nothing if ranks (by number and generation) and replicas are those
  // of the last map, or if the map would be the first and an expert has no holder: ranks begin
  // with a complete map.
  std::optional<Messages> Publish(std::vector<cluster::RankEntry> ranks,
                                  cluster::Replicas replicas);
  // The rank is out of the world; its keys are not needed any more.
  void Forget(int rank);

  // As published last; version {0, 0}: none so far.
  const cluster::ExpertMap& map() const { return map_; }

 private:
  const std::string& PairKey(int a, int b);

  const uint64_t term_;
  const std::string pair_secret_;
  cluster::ExpertMap map_;
  std::map<std::pair<int, int>, std::string> pair_keys_;  // (lower rank, higher rank)
};

}  // namespace epic::coordinator
