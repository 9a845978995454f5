// The exponential of MLA's softmax, shared by splits and merges.
#pragma once

#include <limits>

#include "kernels/cuda/device/device.h"

namespace epic::kernels::cuda {

inline constexpr float kMlaInfinity = std::numeric_limits<float>::infinity();

// e^(difference·scale) as 2^(difference·exponent_scale). It is 1 where nothing changed: from −∞ to
// −∞ the difference would be NaN.
EPIC_DEVICE float MlaRescale(float from, float to, float exponent_scale) {
  return from == to ? 1.0f : FastExp2((from - to) * exponent_scale);
}
// ex2 is what the card has: e^x = 2^(x · log₂e).
EPIC_DEVICE float MlaExponentScale(float softmax_scale) { return softmax_scale * 1.44269504f; }

}  // namespace epic::kernels::cuda
