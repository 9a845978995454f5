// HeldExperts: experts 0 and 1 of layer 0, held from the start, in the slots of a rank. An order
// takes one turn of loading and changes nothing.
#pragma once

#include <optional>
#include <span>
#include <utility>

#include "worker/experts/expert_set.h"
#include "worker/testing/toy_experts.h"

namespace epic::worker {

class HeldExperts : public ExpertSlots {
 public:
  HeldExperts() {
    for (const int expert : {0, 1}) toy_.Hold(0, expert);
  }

  void Order(ExpertOrder order) override { order_ = std::move(order); }
  bool loading() const override { return order_.has_value(); }
  std::optional<ExpertOutcome> Advance() override {
    order_.reset();
    return std::nullopt;
  }
  int slots() const override { return 2; }
  int64_t order_bytes() const override { return 0; }
  int64_t order_total_bytes() const override { return 0; }
  bool Holds(int layer, int expert) const override { return toy_.Holds(layer, expert); }
  void Compute(int layer, kernels::Tensor rows, std::span<const kernels::ExpertRow> pairs,
               kernels::Tensor out) override {
    toy_.Compute(layer, rows, pairs, out);
  }

 private:
  ToyExperts toy_;
  std::optional<ExpertOrder> order_;
};

}  // namespace epic::worker
