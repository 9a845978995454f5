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

struct MapPublisherOptions {
  uint64_t term = 0;
  // The secret from which the keys of pairs are made; empty: pairs have none.
  std::string pair_secret;
  // Ranks hold maps up to this number from before.
  uint64_t last_number = 0;
  // Whether a map in which an expert has no holder is of no use to the ranks, as where all of them
  // step together. Else only the first map must be complete.
  bool complete_only = false;
};

class MapPublisher {
 public:
  explicit MapPublisher(MapPublisherOptions options) : options_(std::move(options)) {}

  using Messages = std::vector<std::pair<int, v1::PublishMap>>;  // (rank, its part)

  // The messages of a new map. Nothing if ranks (by number and generation) and replicas are those
  // of the last map, or if an expert has no holder and the map must be complete.
  std::optional<Messages> Publish(std::vector<cluster::RankEntry> ranks,
                                  cluster::Replicas replicas);
  // The rank is out of the world; its keys are not needed any more.
  void Forget(int rank);

  // As published last; version {0, 0}: none so far.
  const cluster::ExpertMap& map() const { return map_; }

 private:
  const std::string& PairKey(int a, int b);

  MapPublisherOptions options_;
  cluster::ExpertMap map_;
  std::map<std::pair<int, int>, std::string> pair_keys_;  // (lower rank, higher rank)
};

}  // namespace epic::coordinator
