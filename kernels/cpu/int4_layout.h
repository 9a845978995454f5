// How every family lays INT4 weights out.
//
// A panel is 16 outputs. For each group of 32 inputs it holds 16 scales in BF16, then pairs of
// inputs, [16][16 outputs]: one byte, the even input in the low nibble; nibble = value + 8. Inputs
// past K are 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace epic::kernels {

inline constexpr int64_t kInt4ScaleBytes = 32;
inline constexpr int64_t kInt4GroupBytes = kInt4ScaleBytes + 256;

constexpr int64_t Int4Groups(int64_t k) { return (k + kInt4Group - 1) / kInt4Group; }
constexpr int64_t Int4PanelBytes(int64_t k) {
  return (Int4Groups(k) * kInt4GroupBytes + 63) / 64 * 64;
}

// Packs panels [panel_begin, panel_end) of a matrix, quantising what is not kI4. `packed` is the
// start of the whole matrix.
void PackInt4Panels(const SourceMatrix& source, int64_t panel_begin, int64_t panel_end,
                    std::byte* packed);

}  // namespace epic::kernels
