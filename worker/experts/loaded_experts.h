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
#include <vector>

#include "base/env.h"
#include "model/model.h"
#include "worker/experts/expert_set.h"

namespace epic::worker {

// One thread, the rank's loop.
class LoadedExperts : public ExpertSlots {
 public:
  // All given outlives this. `slots`: how many experts the memory plan has room for, each of
  // `expert_bytes` in the checkpoint.
  LoadedExperts(const Clock& clock, const model::ModelConfig& config,
                const model::Checkpoint& checkpoint, kernels::Backend& backend, int slots,
                int64_t expert_bytes);

  void Order(ExpertOrder order) override;
  bool loading() const override { return order_.has_value(); }
  std::optional<ExpertOutcome> Advance() override;
  int slots() const override { return slots_; }
  int64_t order_bytes() const override { return order_bytes_; }
  int64_t order_total_bytes() const override { return order_total_bytes_; }
  int held_count() const { return static_cast<int>(held_.size()); }
  // All that is held, with its proofs.
  std::map<ExpertName, uint64_t> held() const;

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
  const int64_t expert_bytes_;
  std::map<ExpertName, model::LoadedExpert> held_;
  std::vector<std::vector<const kernels::Mlp*>> by_layer_;  // [layer][expert], null: not held
  std::optional<ExpertOrder> order_;
  std::deque<ExpertName> missing_;  // of the order
  absl::Time began_;
  int64_t order_bytes_ = 0;
  int64_t order_total_bytes_ = 0;
};

}  // namespace epic::worker
