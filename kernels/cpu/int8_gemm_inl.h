// Products of family `int8` over the lanes of the including file:
//   Weights16      the weights of 4 inputs × 16 outputs, Load(const std::byte*)
//   Sums16         16 INT32, Zero(), Dot(row values of 4 inputs, Weights16),
//                  Finish(sums of the panel, its scales, row scale, columns, c)
//   kRowTile, TilePanels(rows)
#pragma once

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/int8_layout.h"

namespace epic::kernels {
namespace {

constexpr int64_t kAheadBytes = 2048;

// Rows [0, kRows) from `rows` by kPanels panels.
template <int kRows, int kPanels>
void Tile(const GemmArguments& g, const int64_t (&panels)[kPanels], const std::byte* rows,
          float* c) {
  const int64_t row_bytes = Int8RowBytes(g.weight.k);
  const int64_t panel_bytes = Int8PanelBytes(g.weight.k);
  const std::byte* weights[kPanels];
  Sums16 sums[kRows][kPanels];
#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) {
    weights[p] = g.weight.data + panels[p] * panel_bytes + kInt8HeaderBytes;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sums[r][p] = Sums16::Zero();
  }
  const int64_t steps = Int8Tiles(g.weight.k) * (kInt8TileInputs / 4);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      const Weights16 w = Weights16::Load(weights[p] + 64 * i);
      _mm_prefetch(reinterpret_cast<const char*>(weights[p] + 64 * i + kAheadBytes), _MM_HINT_T0);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        int32_t four;
        __builtin_memcpy(&four, rows + r * row_bytes + 4 * i, 4);
        sums[r][p].Dot(four, w);
      }
    }
  }
  for (int p = 0; p < kPanels; ++p) {
    const std::byte* header = g.weight.data + panels[p] * panel_bytes;
    const int64_t n = panels[p] * 16;
    const auto columns = static_cast<int>(g.n_end - n < 16 ? g.n_end - n : 16);
    for (int r = 0; r < kRows; ++r) {
      float scale;
      __builtin_memcpy(&scale, rows + r * row_bytes + Int8ScaleOffset(g.weight.k), 4);
      sums[r][p].Finish(header + 64, reinterpret_cast<const float*>(header), scale, columns,
                        c + r * g.c_stride + n - g.n_begin);
    }
  }
}

// At most kRowTile rows by the same panels.
template <int kRows, int kPanels>
void Rows(const GemmArguments& g, const int64_t (&panels)[kPanels], int64_t row, int64_t count) {
  if (count < kRows) {
    if constexpr (kRows > 1) Rows<kRows - 1, kPanels>(g, panels, row, count);
    return;
  }
  Tile<kRows, kPanels>(g, panels, g.prepared + row * Int8RowBytes(g.weight.k),
                       g.c + row * g.c_stride);
}

// Each of kPanels streams reads its own stretch of consecutive panels. Returns the first panel left
// over.
template <int kPanels>
int64_t Sweep(const GemmArguments& g, int64_t begin, int64_t end) {
  const int64_t apart = (end - begin) / kPanels;
  for (int64_t i = 0; i < apart; ++i) {
    int64_t panels[kPanels];
    for (int p = 0; p < kPanels; ++p) panels[p] = begin + i + p * apart;
    for (int64_t row = 0; row < g.m; row += kRowTile) {
      const int64_t left = g.m - row;
      // Wide groups are for few rows only.
      constexpr int kRowsMost = kPanels > TilePanels(kRowTile) ? kFewRows : kRowTile;
      Rows<kRowsMost, kPanels>(g, panels, row, left < kRowsMost ? left : kRowsMost);
    }
  }
  return begin + apart * kPanels;
}

void Gemm(const GemmArguments& g) {
  int64_t at = g.n_begin / 16;
  const int64_t end = (g.n_end + 15) / 16;
  if constexpr (TilePanels(1) > TilePanels(kRowTile)) {
    if (g.m <= kFewRows) at = Sweep<TilePanels(1)>(g, at, end);
  }
  at = Sweep<TilePanels(kRowTile)>(g, at, end);
  if constexpr (TilePanels(kRowTile) > 1) Sweep<1>(g, at, end);
}

}  // namespace
}  // namespace epic::kernels
