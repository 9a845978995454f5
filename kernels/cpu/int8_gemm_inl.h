// Products of family `int8` over the lanes of the including file:
//   Weights16      the weights of 4 inputs × 16 outputs, Load(const std::byte*)
//   Sums16         16 INT32, Clear(), Dot(row values of 4 inputs, Weights16),
//                  Finish(their row, scales of the outputs, columns, c)
//   kRowTile       rows multiplied at once, at most
//   TilePanels(n)  panels beside each other for n of them; as many sums stay in registers
//
// A group of panels is read from memory once: all rows pass over it before the next group.
#pragma once

#include "kernels/cpu/drive_inl.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/int8_layout.h"

namespace epic::kernels {
namespace {

Int8Row EndOf(const std::byte* row, int64_t k) {
  Int8Row end;
  __builtin_memcpy(&end, row + Int8RowOffset(k), sizeof(end));
  return end;
}

// kRows rows from `rows` by kPanels panels from `panel`, which stand `apart`.
template <int kRows, int kPanels>
void Tile(const GemmArguments& g, int64_t panel, int64_t apart, const std::byte* rows, float* c) {
  const int64_t row_bytes = g.prepared_stride;
  const int64_t apart_bytes = apart * Int8PanelBytes(g.weight.k);
  const std::byte* header = g.weight.data + panel * Int8PanelBytes(g.weight.k);
  const std::byte* weights = header + kInt8HeaderBytes;
  Sums16 sums[kRows][kPanels];
  // Indices are constants (Repeat), so that the sums live in registers.
  Repeat<kRows * kPanels>([&](auto i) { sums[i.value / kPanels][i.value % kPanels].Clear(); });
  // Steps cover whole tiles: past K both weights and rows are zeros.
  const int64_t steps = Int8Tiles(g.weight.k) * (kInt8TileInputs / 4);
  for (int64_t step = 0; step < steps; ++step) {
    Weights16 w[kPanels];
    Repeat<kPanels>([&](auto p) {
      const std::byte* from = weights + p.value * apart_bytes + 64 * step;
      w[p.value] = Weights16::Load(from);
      _mm_prefetch(reinterpret_cast<const char*>(from + AheadBytes(kPanels)), _MM_HINT_T0);
    });
    Repeat<kRows>([&](auto r) {
      const std::byte* four = rows + r.value * row_bytes + 4 * step;
      Repeat<kPanels>([&](auto p) { sums[r.value][p.value].Dot(four, w[p.value]); });
    });
  }
  Repeat<kPanels>([&](auto p) {
    const int64_t n = (panel + p.value * apart) * 16;
    // The last panel may have more outputs than C has columns.
    const auto columns = static_cast<int>(g.n_end - n < 16 ? g.n_end - n : 16);
    const auto* scales = reinterpret_cast<const float*>(header + p.value * apart_bytes);
    Repeat<kRows>([&](auto r) {
      sums[r.value][p.value].Finish(EndOf(rows + r.value * row_bytes, g.weight.k), scales, columns,
                                    c + r.value * g.c_stride + n - g.n_begin);
    });
  });
}

// In `passes` of kRows rows or one fewer.
template <int kRows>
void GemmInPasses(const GemmArguments& g, int64_t passes) {
  const int64_t row_bytes = g.prepared_stride;
  const int64_t full = g.m - passes * (kRows - 1);  // passes of kRows
  const auto tile = [&](auto panels, int64_t panel, int64_t apart) {
    for (int64_t pass = 0, row = 0; pass < passes; ++pass) {
      const std::byte* rows = g.prepared + row * row_bytes;
      float* c = g.c + row * g.c_stride;
      if (pass < full) {
        Tile<kRows, panels.value>(g, panel, apart, rows, c);
        row += kRows;
      } else if constexpr (kRows > 1) {
        Tile<kRows - 1, panels.value>(g, panel, apart, rows, c);
        row += kRows - 1;
      }
    }
  };
  SweepPanels<TilePanels(kRows), 1>(g.n_begin / 16, (g.n_end + 15) / 16, tile);
}

void Gemm(const GemmArguments& g) {
  // Passes differ by one row at most: a short last pass would load all weights of a group for
  // little.
  const int64_t passes = (g.m + kRowTile - 1) / kRowTile;
  WithCount<kRowTile>((g.m + passes - 1) / passes,
                      [&](auto rows) { GemmInPasses<rows.value>(g, passes); });
}

}  // namespace
}  // namespace epic::kernels
