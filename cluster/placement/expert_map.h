// ExpertMap: which rank holds which expert (protocol.md §1, §6). The coordinator is its only
// author; every exchange uses the newest map its rank holds. Placement never changes a result, so
// nobody waits for anybody to take a newer map. A value. Each rank is told its part alone, so what
// a change costs grows with the links that it may touch, not with the square of the ranks.
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/address_book.h"
#include "proto/epic/v1/worker.pb.h"

namespace epic::cluster {

// Ordered by term, then number. {0, 0}: no map yet.
struct MapVersion {
  uint64_t term = 0;
  uint64_t number = 0;

  auto operator<=>(const MapVersion&) const = default;
};

// A rank of the world: how to reach it, and its roles.
struct RankEntry : RankAddress {
  bool attention = false;
  bool experts = false;

  // Whether one of the two has rows for experts of the other.
  bool ExchangesWith(const RankEntry& other) const {
    return rank != other.rank && ((attention && other.experts) || (experts && other.attention));
  }
};

struct ExpertMap {
  MapVersion version;
  std::vector<RankEntry> ranks;  // ascending
  // replicas[layer][expert]: the ranks that are ready with it, ascending. Dense layers: empty.
  std::vector<std::vector<std::vector<int>>> replicas;

  // Null: not of this world.
  const RankEntry* Find(int rank) const;
  // Experts of layers with experts that no rank holds.
  int unhosted_count() const;
};

// InvalidArgument, naming the field, for a map that no coordinator could have meant (a replica on
// an unknown rank, ranks out of order, an expert count that is not the same in all layers with
// experts).
absl::StatusOr<ExpertMap> ExpertMapFrom(const v1::PublishMap& message);
// The part of the map that `told` needs: itself, the ranks that it exchanges rows with, and, if it
// has attention, which of them holds what.
v1::PublishMap ToMessage(const ExpertMap& map, const RankEntry& told);

}  // namespace epic::cluster
