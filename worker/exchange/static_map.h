// The map of a world whose ranks are fixed by its launcher (MPI): every rank has both roles, and
// the experts are dealt out once. A pure function, so that all ranks make the same map.
#pragma once

#include "cluster/placement/expert_map.h"
#include "model/config.h"
#include "worker/experts/expert_set.h"

namespace epic::worker {

// Expert e of E in each layer is on rank ⌊e · rank_count / E⌋: runs of neighbours, whose lengths
// differ by at most one. Version {0, 1}. With more ranks than experts some hold none.
cluster::ExpertMap StaticMap(const model::ModelConfig& config, int rank_count);

// What the map gives to `rank` to hold.
ExpertOrder OrderOf(const cluster::ExpertMap& map, int rank);

}  // namespace epic::worker
