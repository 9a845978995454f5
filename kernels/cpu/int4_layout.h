// How every family lays INT4 weights out.
//
// A panel is 16 outputs. Two groups of 32 inputs stand together: the 16 scales of the first in
// BF16, those of the second, then four lines of 64 bytes of each. Line i holds the inputs 8i .. 8i
// + 7 of its group in words of 16 bits, [16 outputs][2]: nibble j of word (output, e) is input 8i +
// 2j + e, so that one shift of all words gives a row of a tile of BF16 (tile_layout.h); nibble =
// value + 8. Inputs past K are 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace epic::kernels {

inline constexpr int64_t kInt4ScaleBytes = 32;
inline constexpr int64_t kInt4LineBytes = 64;
inline constexpr int64_t kInt4GroupBytes = kInt4ScaleBytes + 4 * kInt4LineBytes;

constexpr int64_t Int4Groups(int64_t k) { return (k + kInt4Group - 1) / kInt4Group; }
// Groups stand in pairs, so that lines begin at multiples of 64 bytes though scales take 32.
constexpr int64_t Int4PanelBytes(int64_t k) {
  return (Int4Groups(k) + 1) / 2 * (2 * kInt4GroupBytes);
}
// The places of a group's scales and of its lines in the panel.
constexpr int64_t Int4ScalesAt(int64_t group) {
  return group / 2 * (2 * kInt4GroupBytes) + group % 2 * kInt4ScaleBytes;
}
constexpr int64_t Int4LinesAt(int64_t group) {
  return group / 2 * (2 * kInt4GroupBytes) + 2 * kInt4ScaleBytes + group % 2 * (4 * kInt4LineBytes);
}

// Packs panels [panel_begin, panel_end) of a matrix, quantising what is not kI4. `packed` is the
// start of the whole matrix.
void PackInt4Panels(const SourceMatrix& source, int64_t panel_begin, int64_t panel_end,
                    std::byte* packed);

}  // namespace epic::kernels
