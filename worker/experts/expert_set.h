// ExpertSet: the experts that this rank holds, as whoever serves rows sees them. LoadedExperts
// (loaded_experts.h) packs them from the checkpoint; simulations put an order-sensitive hash in
// their place.
#pragma once

#include <span>

#include "kernels/backend.h"

namespace epic::worker {

// One thread, the rank's loop.
class ExpertSet {
 public:
  virtual ~ExpertSet() = default;
  // Whether the expert is ready: in memory, touched in full and proved.
  virtual bool Holds(int layer, int expert) const = 0;
  // out BF16 [pairs.size(), hidden]: expert pairs[i].expert applied to rows[pairs[i].row], rows
  // BF16 [T, hidden]. All named experts are held. A row's answer depends on that row and expert
  // alone.
  virtual void Compute(int layer, kernels::Tensor rows, std::span<const kernels::ExpertRow> pairs,
                       kernels::Tensor out) = 0;
};

}  // namespace epic::worker
