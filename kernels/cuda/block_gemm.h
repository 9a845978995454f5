// Products of matrices, one family for every number of rows and for dense, contiguous, masked and
// batched groups (experts, heads).
//
//   E4M3: out[r, n] = Σ_b (Σ_{k in block b} x[r, k]·w[g, n, k])
//                         · (x_scale[r, b]·w_scale[g, n/128, b])
//   BF16: out[r, n] = Σ_k x[r, k]·w[g, n, k]
//
// Blocks of 128 along K, b ascending, each inner sum by the tensor cores, the outer one by FP32
// multiply-adds; of BF16 the tensor cores sum all. A row's bits depend on its x, its group's w and
// (n, k) alone: never on the layout, the other rows or the tile. N and the rows are any numbers; a
// row of K is a multiple of 16 bytes.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/launch.h"

namespace epic::kernels::cuda {

enum class GemmLayout : uint8_t {
  kDense,       // one group, `rows` rows
  kContiguous,  // segments of kSegmentRows rows, each of the group that segment_group names
  kMasked,      // per group `rows` places, of which the first group_rows[g] are taken
};

enum class GemmType : uint8_t { kE4M3, kBF16 };

// kAddF32 adds to what `out` holds: each value has one thread, so the addition needs no atomics.
enum class GemmOutput : uint8_t { kF32, kBF16, kAddF32 };

// As long as the largest row tile, so that no tile holds rows of two groups.
inline constexpr int kSegmentRows = 128;

// All pointers are to device memory; `x` and `w` are 16-byte aligned, and so are their strides.
struct BlockGemmArguments {
  GemmType type = GemmType::kE4M3;
  GemmLayout layout = GemmLayout::kDense;
  int groups = 1;
  int rows = 0;  // in all; masked: per group
  int n = 0;
  int k = 0;
  const void* x = nullptr;         // [rows, k]; masked [groups, rows, k]
  int64_t x_row_stride = 0;        // in elements; 0: k
  int64_t x_group_stride = 0;      // 0: rows·x_row_stride
  const float* x_scale = nullptr;  // [ceil(k/128), x_scale_stride]; masked [groups, …]; 16-aligned
  int x_scale_stride = 0;          // at least `rows`, a multiple of 4
  const void* w = nullptr;         // [groups, n, k]
  const float* w_scale = nullptr;  // [groups, ceil(n/128), ceil(k/128)]
  // These stand in place of w and w_scale where groups lie apart: each group's WeightMap and
  // scales.
  const TensorMap* w_maps = nullptr;       // [groups]
  const float* const* w_scales = nullptr;  // [groups]; null for BF16
  const int32_t* segment_group = nullptr;  // contiguous: [ceil(rows/128)]; −1: no rows
  const int32_t* group_rows = nullptr;     // masked: [groups]; null: all places are taken
  GemmOutput output = GemmOutput::kF32;
  void* out = nullptr;           // [rows, n]; masked [groups, rows, n]; other rows are not written
  int64_t out_row_stride = 0;    // in elements; 0: n
  int64_t out_group_stride = 0;  // 0: rows·out_row_stride
  int sm_count = 132;
  int row_tile = 0;  // 16, 32, 64 or 128; 0: by `rows`. Changes no bit.
};

// What the launch copies and how many blocks it has: for the launch and the tests of its limits.
struct BlockGemmTiles {
  int row_tile = 0;
  TileShape w, x, x_scale;
  int64_t blocks = 0;
};
BlockGemmTiles TilesOf(const BlockGemmArguments& arguments);

inline constexpr int kRowTiles[] = {16, 32, 64, 128};
// How many outputs (of N) a tile of `row_tile` rows has.
int ColumnTile(int row_tile);
// The map by which products with that column tile bring the weights w [n, k] of one group.
TensorMap WeightMap(GemmType type, const void* w, int n, int k, int column_tile);

void BlockGemm(Stream stream, const BlockGemmArguments& arguments);

}  // namespace epic::kernels::cuda
