// Rotary frequencies and the softmax scale that goes with them, plain or YaRN, in double and
// without libm, so that every machine has the same bits.
#pragma once

#include "kernels/backend.h"
#include "model/config.h"

namespace epic::model {

// inverse_frequency[i] of pair i; YaRN blends b^(−2i/d) and the same over `factor` along a ramp
// between the dimensions that turn beta_fast and beta_slow times over the original context.
kernels::Rope MakeRope(const ModelConfig& config);

// qk_head_dim^(−½), times the square of YaRN's mscale over all dimensions where the config has it.
double SoftmaxScale(const ModelConfig& config);

}  // namespace epic::model
