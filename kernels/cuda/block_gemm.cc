#include "kernels/cuda/block_gemm.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/block_gemm_kernel.h"

namespace epic::kernels::cuda {
namespace {

// The matrix has rows of K; a box is 128 bytes of K by `box_rows`.
TileShape Matrix(const void* data, GemmType type, int64_t k, int64_t rows, int64_t groups,
                 int64_t row_stride, int64_t group_stride, int box_rows) {
  const int bytes = type == GemmType::kE4M3 ? 1 : 2;
  return {.data = data,
          .element_bytes = bytes,
          .extent = {k, rows, groups},
          .stride_bytes = {row_stride * bytes, group_stride * bytes},
          .box = {kTileRowBytes / bytes, box_rows, 1},
          .swizzled = true};
}

int64_t CeilingOf(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

// The smallest tile that holds the rows. Segments of contiguous groups are as large as the largest.
int RowTile(const BlockGemmArguments& a) {
  if (a.row_tile != 0) return a.row_tile;
  if (a.rows > 64 || a.layout == GemmLayout::kContiguous) return 128;
  return a.rows > 32 ? 64 : a.rows > 16 ? 32 : 16;
}

template <typename Kernel>
BlockGemmTiles TilesFor(const BlockGemmArguments& a) {
  constexpr int kRowTile = Kernel::kRows;
  // Only masked groups have rows of their own; dense and contiguous rows are one matrix.
  const int64_t x_groups = a.layout == GemmLayout::kMasked ? a.groups : 1;
  const int64_t x_row_stride = a.x_row_stride == 0 ? a.k : a.x_row_stride;
  const int64_t k_blocks = CeilingOf(a.k, kScaleBlock);
  // An upper bound for masked groups: how many of their places are taken stands in device memory
  // alone.
  const int64_t tiles =
      CeilingOf(a.rows, kRowTile) * CeilingOf(a.n, Kernel::kColumnTile) * x_groups;
  return {
      .row_tile = kRowTile,
      .w = Matrix(a.w, a.type, a.k, a.n, a.groups, a.k, int64_t{a.k} * a.n, Kernel::kColumnTile),
      .x = Matrix(a.x, a.type, a.k, a.rows, x_groups, x_row_stride,
                  a.x_group_stride == 0 ? a.rows * x_row_stride : a.x_group_stride, kRowTile),
      .x_scale = {.data = a.x_scale,
                  .element_bytes = 4,
                  .extent = {a.rows, k_blocks, x_groups},
                  .stride_bytes = {a.x_scale_stride * int64_t{4}, a.x_scale_stride * k_blocks * 4},
                  .box = {kRowTile, 1, 1}},
      // Each block walks over tiles until none is left: more blocks than fit at once would wait for
      // a place and then find nothing to do.
      .blocks = std::min(tiles, int64_t{a.sm_count} * Kernel::kBlocksPerSm)};
}

template <GemmType kType, typename Visit>
auto WithTile(const BlockGemmArguments& a, const Visit& visit) {
  switch (RowTile(a)) {
    case 16:
      return visit(BlockGemm16<kType>{});
    case 32:
      return visit(BlockGemm32<kType>{});
    case 64:
      return visit(BlockGemm64<kType>{});
    default:
      return visit(BlockGemm128<kType>{});
  }
}

// Calls visit(kernel) with the variant for the arguments.
template <typename Visit>
auto WithVariant(const BlockGemmArguments& a, const Visit& visit) {
  return a.type == GemmType::kE4M3 ? WithTile<GemmType::kE4M3>(a, visit)
                                   : WithTile<GemmType::kBF16>(a, visit);
}

void CheckArguments(const BlockGemmArguments& a) {
  KERNEL_CHECK(a.rows >= 0 && a.n > 0 && a.k > 0, "%d rows, n %d, k %d", a.rows, a.n, a.k);
  const bool fp8 = a.type == GemmType::kE4M3;
  KERNEL_CHECK_EQ(a.k * (fp8 ? 1 : 2) % 16, 0);  // rows of K go by bulk copies
  KERNEL_CHECK(a.x != nullptr && a.out != nullptr);
  KERNEL_CHECK(a.w != nullptr || a.w_maps != nullptr);
  // With a shorter stride the copy of a tile's scales would bring those of the next block of K.
  KERNEL_CHECK(!fp8 || (a.x_scale != nullptr && a.x_scale_stride >= a.rows), "stride %d of %d rows",
               a.x_scale_stride, a.rows);
  KERNEL_CHECK(!fp8 || a.w_scale != nullptr || a.w_scales != nullptr);
  KERNEL_CHECK(a.layout != GemmLayout::kContiguous || a.segment_group != nullptr);
  KERNEL_CHECK(a.row_tile == 0 || std::ranges::count(kRowTiles, a.row_tile) == 1, "row tile %d",
               a.row_tile);
}

}  // namespace

BlockGemmTiles TilesOf(const BlockGemmArguments& arguments) {
  return WithVariant(arguments, [&](auto kernel) { return TilesFor<decltype(kernel)>(arguments); });
}

int ColumnTile(int row_tile) {
  // Both types have the same column tiles, so either may be asked.
  return WithTile<GemmType::kE4M3>({.row_tile = row_tile},
                                   [](auto kernel) { return decltype(kernel)::kColumnTile; });
}

TensorMap WeightMap(GemmType type, const void* w, int n, int k, int column_tile) {
  return MakeTensorMap(Matrix(w, type, k, n, 1, k, int64_t{k} * n, column_tile));
}

void BlockGemm(Stream stream, const BlockGemmArguments& arguments) {
  CheckArguments(arguments);
  // A tensor map may not be empty (TileProblem).
  if (arguments.rows == 0) return;
  const BlockGemmTiles tiles = TilesOf(arguments);
  BlockGemmParams params = {.x = MakeTensorMap(tiles.x), .arguments = arguments};
  // Groups that lie apart have maps in device memory, which the kernel reads.
  if (arguments.w_maps == nullptr) params.w = MakeTensorMap(tiles.w);
  if (arguments.type == GemmType::kE4M3) params.x_scale = MakeTensorMap(tiles.x_scale);
  WithVariant(arguments, [&](auto kernel) {
    Launch<decltype(kernel)>(stream, static_cast<int>(tiles.blocks), params);
  });
}

}  // namespace epic::kernels::cuda
