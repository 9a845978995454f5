// ModelShape: what placement must know of a model.
#pragma once

#include <cstdint>

namespace epic::coordinator {

// Dense layers come first: every layer from `first_expert_layer` on has `expert_count` experts.
struct ModelShape {
  int layer_count = 0;
  int first_expert_layer = 0;
  int expert_count = 0;

  bool operator==(const ModelShape&) const = default;
  int64_t expert_total() const { return int64_t{layer_count - first_expert_layer} * expert_count; }
};

}  // namespace epic::coordinator
