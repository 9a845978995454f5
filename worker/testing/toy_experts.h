// ToyExperts: an ExpertSet in place of weights. An answer is an order-sensitive hash of layer,
// expert and row, so that a row missing, doubled or misplaced changes what follows from it.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <utility>

#include "worker/experts/expert_set.h"

namespace epic::worker {

class ToyExperts : public ExpertSet {
 public:
  void Hold(int layer, int expert) { held_.insert({layer, expert}); }
  void Drop(int layer, int expert) { held_.erase({layer, expert}); }

  bool Holds(int layer, int expert) const override { return held_.contains({layer, expert}); }
  void Compute(int layer, kernels::Tensor rows, std::span<const kernels::ExpertRow> pairs,
               kernels::Tensor out) override;
  // Called by Compute.
  void set_on_compute(std::function<void(int layer, std::span<const kernels::ExpertRow>)> hook) {
    on_compute_ = std::move(hook);
  }

  // What `expert` makes of one row.
  static void Answer(int layer, int expert, std::span<const uint16_t> row,
                     std::span<uint16_t> answer);

 private:
  std::set<std::pair<int, int>> held_;
  std::function<void(int, std::span<const kernels::ExpertRow>)> on_compute_;
};

}  // namespace epic::worker
