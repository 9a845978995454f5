// LoadedAttention: what a rank with the attention role holds for its whole life: the weights apart
// from experts, and the pages of its KV cache.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "base/env.h"
#include "model/model.h"
#include "worker/kv/kv_pool.h"
#include "worker/kv/page_ledger.h"
#include "worker/rank_plan.h"

namespace epic::worker {

struct LoadedAttention {
  LoadedAttention(const RankPlan& plan, std::unique_ptr<model::Model> loaded);
  LoadedAttention(const LoadedAttention&) = delete;  // pages refers to pool

  std::unique_ptr<model::Model> model;
  KvPool pool;
  PageLedger pages;
};

// Takes as long as reading the weights does. `plan` outlives the result. `progress` is called again
// and again with the bytes read so far, of plan.weights.source_bytes. DataLoss or InvalidArgument,
// naming file and tensor, for a checkpoint that is not what the plan read.
absl::StatusOr<std::unique_ptr<LoadedAttention>> LoadAttention(
    const RankPlan& plan, const Clock& clock, std::function<void(int64_t loaded_bytes)> progress);

}  // namespace epic::worker
