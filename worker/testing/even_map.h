// Maps of experts for tests of ranks that step together. In production the coordinator makes them
// (coordinator/world/epochs.h).
#pragma once

#include "cluster/placement/expert_map.h"
#include "model/config.h"
#include "worker/experts/expert_set.h"

namespace epic::worker {

// Ranks have both roles. Expert e of E in each layer is on rank ⌊e · rank_count / E⌋: runs of
// neighbours, whose lengths differ by at most one. Version {0, 1}.
cluster::ExpertMap EvenMap(const model::ModelConfig& config, int rank_count);

// What the map gives to `rank` to hold.
ExpertOrder OrderOf(const cluster::ExpertMap& map, int rank);

}  // namespace epic::worker
