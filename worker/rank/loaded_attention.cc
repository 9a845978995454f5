#include "worker/rank/loaded_attention.h"

#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "worker/engine/memory_plan.h"

namespace epic::worker {

LoadedAttention::LoadedAttention(const RankPlan& plan, std::unique_ptr<model::Model> loaded)
    : model(std::move(loaded)),
      pool(*plan.backend, model->kv_layout(), plan.config.layer_count, plan.memory.page_count),
      pages(plan.memory.page_count, [this](int32_t page) { pool.ZeroPage(page); }) {}

absl::StatusOr<std::unique_ptr<LoadedAttention>> LoadAttention(
    const RankPlan& plan, const Clock& clock, std::function<void(int64_t loaded_bytes)> progress) {
  CHECK(plan.memory.page_count > 0) << "a plan without the attention role";
  const absl::Time began = clock.Now();
  // Experts are not loaded here: they fill slots, on the coordinator's orders. How weights are
  // packed is the backend's affair.
  const model::LoadOptions load{.wants_expert = [](int, int) { return false; },
                                .progress = std::move(progress)};
  ASSIGN_OR_RETURN(auto model,
                   model::Model::Load(plan.config, *plan.checkpoint, *plan.backend, load));
  LOG_INFO("loaded {} in {:.1f} s", BytesToString(plan.weights.source_bytes),
           absl::ToDoubleSeconds(clock.Now() - began));
  return std::make_unique<LoadedAttention>(plan, std::move(model));
}

}  // namespace epic::worker
