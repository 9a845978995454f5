// LoadedExperts: this rank's slots, filled from the checkpoint while steps go on.
//
//   experts.Order(order);                 // from PlaceExperts: replaces an unfinished order
//   while (experts.loading()) {           // one expert a turn, between stages of steps
//     if (auto outcome = experts.Advance()) Tell(*outcome);
//   }
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/env.h"
#include "model/model.h"
#include "worker/experts/expert_set.h"

namespace epic::worker {

struct ExpertName {
  int layer = 0;
  int expert = 0;

  auto operator<=>(const ExpertName&) const = default;
};

struct ExpertOrder {
  uint64_t order = 0;
  // All that is to be held, with the proof that another holder gave (0: none is known).
  std::map<ExpertName, uint64_t> wanted;
};

// What became of an order.
struct ExpertOutcome {
  uint64_t order = 0;
  absl::Status status;                    // not OK: what was loaded before stays
  std::map<ExpertName, uint64_t> proofs;  // of all that is held now and was wanted
  int64_t loaded_bytes = 0;               // of the checkpoint, for this order
  absl::Duration duration;
};

// One thread, the rank's loop.
class LoadedExperts : public ExpertSet {
 public:
  // All given outlives this. `slots`: how many experts the memory plan has room for.
  LoadedExperts(const Clock& clock, const model::ModelConfig& config,
                const model::Checkpoint& checkpoint, kernels::Backend& backend, int slots);

  // Drops what is held and not wanted, at once (dropping is always safe: NOT_HERE); the rest is
  // loaded by Advance. More than `slots` is refused by the next Advance.
  void Order(ExpertOrder order);
  bool loading() const { return order_.has_value(); }
  // Loads one expert. The outcome, once the order is done or failed: ResourceExhausted for want of
  // slots, InvalidArgument for an expert that is not in the model or cannot be loaded, DataLoss if
  // its proof is not the one that was given.
  std::optional<ExpertOutcome> Advance();

  int slots() const { return slots_; }
  int held_count() const { return static_cast<int>(held_.size()); }
  // Of the checkpoint, since start.
  int64_t loaded_bytes() const { return loaded_bytes_; }

  bool Holds(int layer, int expert) const override;
  void Compute(int layer, kernels::Tensor rows, std::span<const kernels::ExpertRow> pairs,
               kernels::Tensor out) override;

 private:
  absl::Status CheckOrder() const;
  absl::Status LoadOne();
  ExpertOutcome Finish(absl::Status status);

  const Clock& clock_;
  const model::ModelConfig& config_;
  const model::Checkpoint& checkpoint_;
  kernels::Backend& backend_;
  const int slots_;
  std::map<ExpertName, model::LoadedExpert> held_;
  std::vector<std::vector<const kernels::Mlp*>> by_layer_;  // [layer][expert], null: not held
  std::optional<ExpertOrder> order_;
  std::deque<ExpertName> missing_;  // of the order
  absl::Time began_;
  int64_t order_bytes_ = 0;
  int64_t loaded_bytes_ = 0;
};

}  // namespace epic::worker
