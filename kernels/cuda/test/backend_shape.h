// Shapes for tests of the CUDA backend.
#pragma once

#include "kernels/testing/toy_model.h"
#include "kernels/testing/v3_shape.h"

namespace epic::kernels::cuda {

// The classes of shapes: every gate, q_lora or none, FP8 blocks or BF16, widths that no block of
// 128 divides.
inline ToyShape BackendShape(int variant) {
  ToyShape shape;
  shape.vocab = 90;
  shape.intermediate = 80;
  shape.attention = {.hidden = 144,
                     .heads = 3,
                     .q_rank = 48,
                     .kv_rank = 128,
                     .nope_dim = 32,
                     .rope_dim = 64,
                     .v_dim = 16,
                     .norm_eps = 1e-5f,
                     .inner_norm_eps = 1e-6f,
                     .softmax_scale = 0.1f};
  shape.gate = {.experts = 7, .top_k = 3, .score = GateScore::kSigmoid, .scaling = 1.5f};
  switch (variant) {
    case 0:
      break;
    case 1:  // FP8, grouped sigmoid with a bias
      shape.dtype = DType::kF8E4M3;
      shape.attention.hidden = 272;
      shape.intermediate = 144;
      shape.gate = {.experts = 10,
                    .top_k = 4,
                    .score = GateScore::kSigmoid,
                    .group_score = GroupScore::kTopTwoSum,
                    .groups = 5,
                    .kept_groups = 3,
                    .normalise = true,
                    .scaling = 2.5f};
      break;
    case 2:  // no q_lora, softmax, half-split rope, FP32 sources
      shape.dtype = DType::kF32;
      shape.router_dtype = DType::kF32;
      shape.attention.q_rank = 0;
      shape.attention.rope_interleaved = false;
      shape.gate = {.experts = 5, .top_k = 2};
      break;
    default:  // FP8 without q_lora, group-limited softmax
      shape.dtype = DType::kF8E4M3;
      shape.router_dtype = DType::kF16;
      shape.attention.q_rank = 0;
      shape.gate = {.experts = 6,
                    .top_k = 2,
                    .group_score = GroupScore::kMax,
                    .groups = 3,
                    .kept_groups = 2,
                    .scaling = 4.0f};
  }
  return shape;
}

// DeepSeek-V3's widths, with few experts and words.
inline ToyShape V3Shape() {
  ToyShape shape;
  shape.vocab = 512;
  shape.intermediate = 2048;
  shape.dtype = DType::kF8E4M3;
  shape.attention = V3Attention();
  shape.gate = V3Gate();
  shape.gate.experts = 16;
  return shape;
}

}  // namespace epic::kernels::cuda
