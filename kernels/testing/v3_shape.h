// The widths of DeepSeek-V3, for tests and benchmarks.
#pragma once

#include "kernels/backend.h"

namespace epic::kernels {

inline AttentionShape V3Attention() {
  return {.hidden = 7168,
          .heads = 128,
          .q_rank = 1536,
          .kv_rank = 512,
          .nope_dim = 128,
          .rope_dim = 64,
          .v_dim = 128,
          .norm_eps = 1e-6f,
          .inner_norm_eps = 1e-6f,
          .softmax_scale = 0.1f};
}

inline GateShape V3Gate() {
  return {.experts = 256,
          .top_k = 8,
          .score = GateScore::kSigmoid,
          .group_score = GroupScore::kTopTwoSum,
          .groups = 8,
          .kept_groups = 4,
          .normalise = true,
          .scaling = 2.5f};
}

}  // namespace epic::kernels
