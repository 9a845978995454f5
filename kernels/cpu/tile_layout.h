// How families `amx-bf16` and `avx512-bf16` lay weights and rows out.
//
// A panel is 16 outputs, in tiles of 32 inputs, zero past K. BF16: [16][16 outputs][2 inputs], as
// the products want it (1 KiB). FP8: the scales of the panel's blocks (FP32, padded to 64
// bytes), then the codes of such tiles in the order of CodeOffset (512 bytes). INT4:
// int4_layout.h; a group is a tile.
// A row is its BF16 values, zero past K, with 64 bytes added where its length would put rows of a
// tile into the same sets of the cache.
#pragma once

#include <cstdint>

#include "kernels/cpu/int4_layout.h"
#include "kernels/tensor.h"

namespace epic::kernels {

inline constexpr int kTilePanel = 16;
inline constexpr int64_t kBf16TileInputs = 32;
inline constexpr int64_t kBf16TileBytes = 1024;
inline constexpr int64_t kCodeTileBytes = 512;
inline constexpr int64_t kTilesPerScale = kScaleBlock / kBf16TileInputs;

constexpr int64_t Bf16Tiles(int64_t k) { return (k + kBf16TileInputs - 1) / kBf16TileInputs; }

constexpr int64_t TileHeaderBytes(int64_t k, DType dtype) {
  const int64_t blocks = (k + kScaleBlock - 1) / kScaleBlock;
  return dtype == DType::kF8E4M3 ? (4 * blocks + 63) / 64 * 64 : 0;
}

constexpr int64_t TilePanelBytes(int64_t k, DType dtype) {
  if (dtype == DType::kI4) return Int4PanelBytes(k);
  return TileHeaderBytes(k, dtype) +
         Bf16Tiles(k) * (dtype == DType::kF8E4M3 ? kCodeTileBytes : kBf16TileBytes);
}

// The number of 64-byte lines is odd, so that the rows of a tile begin in different sets of the
// cache.
constexpr int64_t TileRowBytes(int64_t k) { return (Bf16Tiles(k) | 1) * 64; }

// Where the code of value `element` (0..31) of row `row` of a tile stands: interleaving the low
// and high bytes of 64 decoded codes lane by lane then gives two rows in order.
constexpr int CodeOffset(int row, int element) {
  return row / 2 * 64 + element / 8 * 16 + row % 2 * 8 + element % 8;
}

}  // namespace epic::kernels
