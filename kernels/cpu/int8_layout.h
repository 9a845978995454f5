// How family `int8` lays weights and rows out, the same for every instruction set.
//
// A panel is 16 outputs: 16 FP32 scales, then tiles of 64 inputs, [16][16 outputs][4 inputs]
// (1 KiB each), zero past K.
// A row is its INT8 values, zero past K, and in its last 64 bytes an Int8Row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace epic::kernels {

inline constexpr int64_t kInt8TileInputs = 64;
inline constexpr int64_t kInt8TileBytes = 1024;
inline constexpr int64_t kInt8HeaderBytes = 64;

struct Int8Row {
  float scale;
  int32_t surplus;  // 128·Σₖ row[k]: of a sum whose weights are taken 128 too large
};

constexpr int64_t Int8Tiles(int64_t k) { return (k + kInt8TileInputs - 1) / kInt8TileInputs; }
constexpr int64_t Int8PanelBytes(int64_t k) {
  return kInt8HeaderBytes + Int8Tiles(k) * kInt8TileBytes;
}
constexpr int64_t Int8RowOffset(int64_t k) { return Int8Tiles(k) * kInt8TileInputs; }
// The Int8Row has a whole line, so that rows stay aligned to lines.
constexpr int64_t Int8RowBytes(int64_t k) { return Int8RowOffset(k) + 64; }

// As PackInt4Panels (int4_layout.h).
void PackInt8Panels(const SourceMatrix& source, int64_t panel_begin, int64_t panel_end,
                    std::byte* packed);

}  // namespace epic::kernels
