// How family `fma` lays a weight out.
//
// A panel is 16 outputs. BF16: pairs of k, [K/2][16][2]. FP32: [K][16]. FP8: 16 multipliers of the
// result (1, or NaN where a weight of that output is NaN), then the scales of the panel's blocks
// times 2⁸ (padded to 64 bytes), then codes [K][16], which are decoded 2⁻⁸ too small. INT4:
// int4_layout.h.
#pragma once

#include <cstdint>

#include "kernels/cpu/int4_layout.h"
#include "kernels/tensor.h"

namespace epic::kernels {

inline constexpr int kFmaPanel = 16;
inline constexpr int kFmaRowTile = 6;

constexpr int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

constexpr int64_t FmaScaleBlocks(int64_t k) { return (k + kScaleBlock - 1) / kScaleBlock; }

// Bytes before the weights of a panel.
constexpr int64_t FmaHeaderBytes(int64_t k, DType dtype) {
  return dtype == DType::kF8E4M3 ? 64 + RoundUp(4 * FmaScaleBlocks(k), 64) : 0;
}

constexpr int64_t FmaPanelBytes(int64_t k, DType dtype) {
  if (dtype == DType::kI4) return Int4PanelBytes(k);
  return FmaHeaderBytes(k, dtype) + RoundUp(RoundUp(k, 2) * kFmaPanel * DTypeBytes(dtype), 64);
}

}  // namespace epic::kernels
