#include "worker/rank_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "model/step.h"
#include "worker/device.h"
#include "worker/exchange/collective_exchange.h"
#include "worker/kv/kv_pool.h"

namespace epic::worker {
namespace {

int CeilDivide(int value, int by) { return (value + by - 1) / by; }

// Each running sequence may have a decode row in one step, so a smaller --max-num-batched-tokens is
// raised to their number.
int RowsMax(const WorkerOptions& options) {
  return std::max(options.max_num_batched_tokens, options.max_num_seqs);
}

// Each sequence may draw a token in one step. The rest is for prompts whose log-probabilities were
// asked for; 512 is chosen, and bounds a buffer of rows × vocabulary.
int LogitRowsMax(const WorkerOptions& options) { return std::max(512, options.max_num_seqs); }

// By messages: the frames under way in both directions with each rank that this one may speak to.
// In lock-step: the buffers for a tile of each rank.
int64_t ExchangeBytes(const WorkerOptions& options, const RankPlan& plan) {
  if (options.exchange != "messages") {
    return CollectiveExchange::BufferBytes(plan.exchange_shape(), RowsMax(options),
                                           options.expert_ranks);
  }
  const int peers = std::max(options.expert_ranks, options.local_ranks) - 1;
  const ExchangeLimits limits;
  return int64_t{2} * peers * limits.tiles_in_flight_max * limits.answer_bytes_max;
}

// The coordinator is told only the first layer with experts, and places experts in all layers from
// there on.
absl::Status CheckExpertLayers(const model::ModelConfig& config) {
  for (int layer = 1; layer < config.layer_count; ++layer) {
    if (!config.is_sparse(layer - 1) || config.is_sparse(layer)) continue;
    return absl::UnimplementedError(
        absl::StrCat("config.json: layer ", layer, " has no experts and layer ", layer - 1,
                     " has; only models whose dense layers come first are served"));
  }
  return absl::OkStatus();
}

absl::Status PlanExperts(const WorkerOptions& options, RankPlan& plan, MemoryNeeds& needs) {
  ASSIGN_OR_RETURN(plan.expert,
                   model::PlanExperts(plan.config, *plan.checkpoint, QuantizationOf(options)));
  const SlotCount count = CountSlots(plan.config, options.expert_ranks, options.tolerate_losses);
  plan.expert_slots = options.expert_slots > 0 ? options.expert_slots : count.slots;
  needs.expert_slots = plan.expert_slots;
  needs.spare_slots = options.expert_slots > 0 ? 0 : count.spare;
  needs.expert_bytes = plan.expert.packed_bytes;
  // The rank loads its experts after the other weights, so only the larger tensor counts.
  needs.loading_bytes = std::max(needs.loading_bytes, plan.expert.largest_tensor_bytes);
  return absl::OkStatus();
}

absl::Status PlanAttention(const WorkerOptions& options, RankPlan& plan, MemoryNeeds& needs) {
  // Experts are loaded into slots on the coordinator's orders, never with the other weights.
  const model::LoadOptions load{.wants_expert = [](int, int) { return false; },
                                .quantization = QuantizationOf(options),
                                .prompt_attention = PromptAttentionOf(options)};
  ASSIGN_OR_RETURN(plan.weights, model::PlanWeights(plan.config, *plan.checkpoint, load));
  const int rows_max = RowsMax(options);
  plan.limits.scheduler = {.max_num_batched_tokens = rows_max,
                           .max_num_seqs = options.max_num_seqs,
                           .max_logit_rows = LogitRowsMax(options)};
  plan.limits.max_model_len =
      options.max_model_len > 0 ? options.max_model_len : plan.config.max_position;
  const kernels::KvLayout layout{plan.config.kv_lora_rank, plan.config.qk_rope_head_dim,
                                 plan.backend->kv_type()};
  needs.weights_bytes = plan.weights.packed_bytes;
  needs.embedding_bytes = plan.weights.embedding_bytes;
  needs.loading_bytes = plan.weights.largest_tensor_bytes;
  needs.buffers_bytes += model::StepBuffers::Bytes(plan.config, *plan.backend, rows_max,
                                                   plan.limits.scheduler.max_logit_rows);
  needs.page_bytes = KvPool::PageBytes(layout, plan.config.layer_count);
  return absl::OkStatus();
}

}  // namespace

ExchangeShape RankPlan::exchange_shape() const {
  return {.layer_count = config.layer_count,
          .expert_count = config.expert_count,
          .experts_per_token = config.experts_per_token,
          .hidden = config.hidden_size};
}

v1::WorkerIdentity RankPlan::identity() const {
  v1::WorkerIdentity identity;
  identity.set_profile(backend->profile());
  identity.set_checkpoint(checkpoint->fingerprint());
  identity.set_description(backend->description());
  identity.set_expert_slots(expert_slots);
  identity.set_expert_bytes(expert.packed_bytes);
  identity.set_layer_count(config.layer_count);
  // The plan has checked that dense layers come first.
  identity.set_first_expert_layer(config.layer_count - config.sparse_layer_count());
  identity.set_expert_count(config.expert_count);
  return identity;
}

v1::WorkerReady RankPlan::ready() const {
  v1::WorkerReady ready;
  ready.set_profile(backend->profile());
  ready.set_checkpoint(checkpoint->fingerprint());
  ready.set_kv_page_count(memory.page_count);
  ready.set_max_model_len(limits.max_model_len);
  ready.set_description(backend->description());
  return ready;
}

SlotCount CountSlots(const model::ModelConfig& config, int expert_ranks, int tolerate_losses) {
  // Losses of all ranks cannot be survived: one that is left holds everything.
  const int survivors = std::max(1, expert_ranks - tolerate_losses);
  // Rounded up in each layer, since the coordinator spreads the experts of each layer evenly.
  const int share = config.sparse_layer_count() * CeilDivide(config.expert_count, expert_ranks);
  const int slots = config.sparse_layer_count() * CeilDivide(config.expert_count, survivors);
  return {.slots = slots, .spare = slots - share};
}

absl::StatusOr<RankPlan> MakeRankPlan(const WorkerOptions& options) {
  RankPlan plan;
  ASSIGN_OR_RETURN(plan.config, model::ReadModelConfig(options.model));
  if (options.max_model_len > plan.config.max_position) {
    return absl::InvalidArgumentError(absl::StrCat("--max-model-len: ", options.max_model_len,
                                                   ", the model has ", plan.config.max_position,
                                                   " positions"));
  }
  RETURN_IF_ERROR(CheckExpertLayers(plan.config));
  ASSIGN_OR_RETURN(plan.checkpoint, model::Checkpoint::Open(options.model));
  for (const std::string& warning : plan.checkpoint->warnings()) LOG_WARNING("{}", warning);
  ASSIGN_OR_RETURN(Device device, OpenDevice(options, plan.config));
  plan.backend = std::move(device.backend);
  MemoryNeeds needs{
      .buffers_bytes = ScratchBytes(options, plan.config, RowsMax(options), LogitRowsMax(options)),
      .exchange_bytes = ExchangeBytes(options, plan)};
  if (options.attention()) RETURN_IF_ERROR(PlanAttention(options, plan, needs));
  if (options.experts()) RETURN_IF_ERROR(PlanExperts(options, plan, needs));
  ASSIGN_OR_RETURN(plan.memory,
                   PlanMemory(needs, {.available_bytes = device.available_bytes,
                                      .utilization = options.memory_utilization,
                                      .kv_cache_bytes = options.kv_cache_bytes,
                                      .max_model_len = std::max(1, plan.limits.max_model_len),
                                      .max_num_seqs = options.max_num_seqs}));
  return plan;
}

}  // namespace epic::worker
