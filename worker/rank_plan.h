// RankPlan: all that a rank knows before it loads anything: model, backend, what it will hold, and
// the memory that it will take.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/model.h"
#include "proto/epic/v1/worker.pb.h"
#include "worker/engine/engine.h"
#include "worker/engine/memory_plan.h"
#include "worker/exchange/dispatch_frame.h"
#include "worker/options.h"

namespace epic::worker {

struct RankPlan {
  model::ModelConfig config;
  std::unique_ptr<model::Checkpoint> checkpoint;
  std::unique_ptr<kernels::Backend> backend;
  model::WeightPlan weights;  // experts apart; zeroes without the attention role
  model::ExpertPlan expert;   // of one; zeroes without the experts role
  int expert_slots = 0;
  EngineLimits limits;
  MemoryPlan memory;

  ExchangeShape exchange_shape() const;
  // The first that the coordinator hears of this process. The caller adds its roles, and where
  // other ranks reach it.
  v1::WorkerIdentity identity() const;
  // The message that tells the coordinator that attention is loaded.
  v1::WorkerReady ready() const;
};

// How many experts a rank keeps room for: an even share of each layer's, or what survivors of
// `tolerate_losses` of `expert_ranks` would have to hold. Never more than there are.
struct SlotCount {
  int slots = 0;
  int spare = 0;  // of them
};
SlotCount CountSlots(const model::ModelConfig& config, int expert_ranks, int tolerate_losses);

// InvalidArgument, FailedPrecondition or ResourceExhausted, naming flag or file.
absl::StatusOr<RankPlan> MakeRankPlan(const WorkerOptions& options);

}  // namespace epic::worker
