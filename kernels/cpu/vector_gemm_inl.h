// Products of family `fma` over the lanes of the including file. See fma_layout.h.
//
// Each output has one accumulator that meets K in ascending order, in every path: few rows and
// many, any panels side by side, any cut of K between which C is stored. So all paths have the same
// bits.
#pragma once

#include "kernels/cpu/drive_inl.h"
#include "kernels/cpu/fma_layout.h"
#include "kernels/cpu/gemm.h"

namespace epic::kernels {
namespace {

constexpr int kWideColumns = kLargeTilePanels * kFmaPanel;

// kUnit inputs of a panel are read at a time: Offset(k) is where those from k on stand, and Pair
// gives the weights of the inputs 2j and 2j + 1 of a unit that Load has read. The sum of kSpan
// inputs has a scale; 0: there are no scales.
struct BF16Weight {
  static constexpr int64_t kSpan = 0, kUnit = 2;
  static constexpr int64_t Offset(int64_t k) { return k * 32; }
  using Unit = const char*;
  static Unit Load(const char* panel, int64_t k) { return panel + Offset(k); }
  static void Pair(Unit at, int, F16& first, F16& second) { LoadBF16Pairs(at, first, second); }
};

struct F32Weight {
  static constexpr int64_t kSpan = 0, kUnit = 2;
  static constexpr int64_t Offset(int64_t k) { return k * 64; }
  using Unit = const float*;
  static Unit Load(const char* panel, int64_t k) {
    return reinterpret_cast<const float*>(panel + Offset(k));
  }
  static void Pair(Unit at, int, F16& first, F16& second) {
    first = epic::kernels::Load(at);
    second = epic::kernels::Load(at + kFmaPanel);
  }
};

struct E4M3Weight {
  static constexpr int64_t kSpan = kScaleBlock, kUnit = 2;
  static constexpr int64_t Offset(int64_t k) { return k * 16; }
  using Unit = const char*;
  static Unit Load(const char* panel, int64_t k) { return panel + Offset(k); }
  static void Pair(Unit at, int, F16& first, F16& second) {
    first = LoadE4M3(at);
    second = LoadE4M3(at + 16);
  }
};

struct Int4Weight {
  static constexpr int64_t kSpan = kInt4Group, kUnit = 8;
  static constexpr int64_t Offset(int64_t k) {
    return Int4LinesAt(k / kInt4Group) + k % kInt4Group / kUnit * kInt4LineBytes;
  }
  using Unit = Int4Line;
  static Unit Load(const char* panel, int64_t k) { return LoadInt4Line(panel + Offset(k)); }
  static void Pair(const Unit& line, int j, F16& first, F16& second) {
    Int4Pair(line, j, first, second);
  }
};

struct Panels {
  const char* base;
  int64_t bytes;
  int64_t header_bytes;

  explicit Panels(const PackedWeight& weight)
      : base(reinterpret_cast<const char*>(weight.data)),
        bytes(FmaPanelBytes(weight.k, weight.dtype)),
        header_bytes(FmaHeaderBytes(weight.k, weight.dtype)) {}
  const char* Weights(int64_t panel) const { return base + panel * bytes + header_bytes; }
  const float* Multipliers(int64_t panel) const {
    return reinterpret_cast<const float*>(base + panel * bytes);
  }
  // The scale of the span that begins at k.
  template <class Weight>
  F16 Scale(int64_t panel, int64_t k) const {
    if constexpr (Weight::kSpan == kInt4Group) {
      return LoadBF16(Weights(panel) + Int4ScalesAt(k / kInt4Group));
    } else {
      return Set1(Multipliers(panel)[16 + k / kScaleBlock]);
    }
  }
  // The whole sum times its multiplier; only E4M3 has them.
  template <class Weight>
  F16 Multiplied(F16 sum, int64_t panel) const {
    if constexpr (Weight::kSpan == kScaleBlock) return sum * Load(Multipliers(panel));
    return sum;
  }
};

int ValidLanes(const GemmArguments& g, int64_t panel) {
  const int64_t left = g.n_end - panel * kFmaPanel;
  return static_cast<int>(left < kFmaPanel ? left : kFmaPanel);
}

float* Destination(const GemmArguments& g, int64_t row, int64_t panel) {
  return g.c + row * g.c_stride + panel * kFmaPanel - g.n_begin;
}

void WidenRow(const BF16* x, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) Store(out + i, LoadBF16(x + i));
  for (; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(x[i].bits) << 16;
    __builtin_memcpy(out + i, &bits, sizeof(bits));
  }
}

// acc[r][p] continues over k in [k_begin, k_end); k_begin is a multiple of kUnit.
// The tail of K is taken input by input: zeros that pad a panel must not be added, as −0 + 0 is 0.
template <class Weight, int kRows, int kPanels>
[[gnu::always_inline]] inline void Accumulate(const char* const (&weights)[kPanels], const float* a,
                                              int64_t a_stride, int64_t k_begin, int64_t k_end,
                                              F16 (&acc)[kRows][kPanels]) {
  int64_t k = k_begin;
  for (; k + Weight::kUnit <= k_end; k += Weight::kUnit) {
    const int64_t ahead = Weight::Offset(k) + AheadBytes(kPanels);
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      const auto unit = Weight::Load(weights[p], k);
      _mm_prefetch(weights[p] + ahead, _MM_HINT_T0);
#pragma GCC unroll 4
      for (int j = 0; j < Weight::kUnit / 2; ++j) {
        F16 first, second;
        Weight::Pair(unit, j, first, second);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          // Input 2j meets all rows, then input 2j + 1: each accumulator meets K in ascending
          // order, and neighbours are independent.
          acc[r][p] = Fma(Set1(a[r * a_stride + k + 2 * j]), first, acc[r][p]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          acc[r][p] = Fma(Set1(a[r * a_stride + k + 2 * j + 1]), second, acc[r][p]);
        }
      }
    }
  }
  if (k == k_end) return;
  for (int p = 0; p < kPanels; ++p) {
    const auto unit = Weight::Load(weights[p], k);
    for (int64_t i = k; i < k_end; ++i) {
      F16 first, second;
      Weight::Pair(unit, static_cast<int>((i - k) / 2), first, second);
      const F16 w = (i - k) % 2 == 0 ? first : second;
      for (int r = 0; r < kRows; ++r) acc[r][p] = Fma(Set1(a[r * a_stride + i]), w, acc[r][p]);
    }
  }
}

template <int kRows, int kPanels>
[[gnu::always_inline]] inline void Clear(F16 (&acc)[kRows][kPanels]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) acc[r][p] = Zero();
  }
}

// kPanels panels, `apart` from each other, for all rows: kRows == g.m.
template <class Weight, int kRows, int kPanels>
void SmallTile(const GemmArguments& g, const Panels& panels, const float* a, int64_t a_stride,
               int64_t panel, int64_t apart) {
  const char* weights[kPanels];
  for (int p = 0; p < kPanels; ++p) weights[p] = panels.Weights(panel + p * apart);
  F16 acc[kRows][kPanels];
  Clear(acc);
  if constexpr (Weight::kSpan > 0) {
    for (int64_t k = 0; k < g.weight.k; k += Weight::kSpan) {
      const int64_t k_end = k + Weight::kSpan < g.weight.k ? k + Weight::kSpan : g.weight.k;
      F16 partial[kRows][kPanels];
      Clear(partial);
      Accumulate<Weight>(weights, a, a_stride, k, k_end, partial);
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        // Spans join in ascending order, each by one FMA with its scale (docs/numerics.md).
        const F16 scale = panels.Scale<Weight>(panel + p * apart, k);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) acc[r][p] = Fma(partial[r][p], scale, acc[r][p]);
      }
    }
  } else {
    Accumulate<Weight>(weights, a, a_stride, 0, g.weight.k, acc);
  }
  for (int p = 0; p < kPanels; ++p) {
    const int64_t at = panel + p * apart;
    for (int r = 0; r < kRows; ++r) {
      StoreN(Destination(g, r, at), panels.Multiplied<Weight>(acc[r][p], at), ValidLanes(g, at));
    }
  }
}

template <class Weight, int kRows>
void SmallGemm(const GemmArguments& g, const Panels& panels) {
  // Rows are widened once for all panels.
  auto* a = reinterpret_cast<float*>(g.scratch);
  const int64_t a_stride = RoundUp(g.weight.k, kFmaPanel);
  for (int r = 0; r < kRows; ++r) WidenRow(g.a + r * g.a_stride, g.weight.k, a + r * a_stride);
  // Short spans keep sums of their own in registers beside the sums of all spans, so fewer panels
  // fit.
  constexpr bool kShort = Weight::kSpan == kInt4Group;
  constexpr int kPanels = SmallTilePanels(kShort && kRows == 3 ? 4 : kRows);
  constexpr int kNarrower = kPanels < 4 ? 1 : 4;
  SweepPanels<kPanels, kNarrower, 1>(g.n_begin / kFmaPanel, (g.n_end + kFmaPanel - 1) / kFmaPanel,
                                     [&](auto count, int64_t panel, int64_t apart) {
                                       SmallTile<Weight, kRows, count.value>(g, panels, a, a_stride,
                                                                             panel, apart);
                                     });
}

// k values of kLargeTilePanels panels, decoded to [k][kWideColumns]; absent panels are zero.
template <class Weight>
void DecodeBlock(const GemmArguments& g, const Panels& panels, int64_t panel, int64_t panel_count,
                 int64_t k_begin, int64_t k_end, float* wide) {
  for (int p = 0; p < kLargeTilePanels; ++p) {
    // An absent panel reads a present one's weights, since it has none, and stores zeros.
    const char* from = panels.Weights(p < panel_count ? panel + p : panel);
    for (int64_t k = k_begin; k < k_end; k += Weight::kUnit) {
      const auto unit = Weight::Load(from, k);
      _mm_prefetch(from + Weight::Offset(k) + AheadBytes(1), _MM_HINT_T0);
      float* to = wide + (k - k_begin) * kWideColumns + p * kFmaPanel;
#pragma GCC unroll 4
      for (int j = 0; j < Weight::kUnit / 2; ++j, to += 2 * kWideColumns) {
        F16 first = Zero(), second = Zero();
        if (p < panel_count) Weight::Pair(unit, j, first, second);
        Store(to, first);
        Store(to + kWideColumns, second);
      }
    }
  }
}

template <int kRows>
[[gnu::always_inline]] inline void LargeTile(const float* wide, const float* a, int64_t count,
                                             F16 (&acc)[kRows][kLargeTilePanels]) {
  for (int64_t k = 0; k < count; ++k) {
    F16 w[kLargeTilePanels];
#pragma GCC unroll 8
    for (int p = 0; p < kLargeTilePanels; ++p) {
      w[p] = Load(wide + k * kWideColumns + p * kFmaPanel);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F16 x = Set1(a[r * kScaleBlock + k]);
#pragma GCC unroll 8
      for (int p = 0; p < kLargeTilePanels; ++p) acc[r][p] = Fma(x, w[p], acc[r][p]);
    }
  }
}

// Continues C[row .. row + kRows) of some panels over one decoded block of K. A block is 128
// inputs, so it holds whole spans of every type.
template <class Weight, int kRows>
void LargeBlock(const GemmArguments& g, const Panels& panels, int64_t panel, int64_t panel_count,
                int64_t row, int64_t k_begin, int64_t k_end, const float* wide, float* a) {
  for (int r = 0; r < kRows; ++r) {
    WidenRow(g.a + (row + r) * g.a_stride + k_begin, k_end - k_begin, a + r * kScaleBlock);
  }
  F16 acc[kRows][kLargeTilePanels];
  Clear(acc);
  // C holds the sums of the blocks before, unrounded FP32: continued, they are one chain.
  if (k_begin > 0) {
    for (int64_t p = 0; p < panel_count; ++p) {
      const int lanes = ValidLanes(g, panel + p);
      for (int r = 0; r < kRows; ++r) {
        acc[r][p] = LoadN(Destination(g, row + r, panel + p), lanes);
      }
    }
  }
  if constexpr (Weight::kSpan == 0) {
    LargeTile<kRows>(wide, a, k_end - k_begin, acc);
  } else {
    for (int64_t k = k_begin; k < k_end; k += Weight::kSpan) {
      const int64_t count = k_end - k < Weight::kSpan ? k_end - k : Weight::kSpan;
      F16 partial[kRows][kLargeTilePanels];
      Clear(partial);
      LargeTile<kRows>(wide + (k - k_begin) * kWideColumns, a + (k - k_begin), count, partial);
      for (int64_t p = 0; p < panel_count; ++p) {
        const F16 scale = panels.Scale<Weight>(panel + p, k);
        for (int r = 0; r < kRows; ++r) acc[r][p] = Fma(partial[r][p], scale, acc[r][p]);
      }
    }
  }
  for (int64_t p = 0; p < panel_count; ++p) {
    const int lanes = ValidLanes(g, panel + p);
    for (int r = 0; r < kRows; ++r) {
      // The multipliers belong to the whole sum, so only the last block takes them.
      const bool last = k_end == g.weight.k;
      StoreN(Destination(g, row + r, panel + p),
             last ? panels.Multiplied<Weight>(acc[r][p], panel + p) : acc[r][p], lanes);
    }
  }
}

// Panels are decoded once for all rows: 128 inputs of four panels are 32 KiB of floats, which stay
// in the first or second level of cache while rows pass over them.
template <class Weight>
void LargeGemm(const GemmArguments& g, const Panels& panels) {
  auto* wide = reinterpret_cast<float*>(g.scratch);
  float* a = wide + (kScaleBlock + 1) * kWideColumns;
  const int64_t end = (g.n_end + kFmaPanel - 1) / kFmaPanel;
  for (int64_t panel = g.n_begin / kFmaPanel; panel < end; panel += kLargeTilePanels) {
    const int64_t count = end - panel < kLargeTilePanels ? end - panel : kLargeTilePanels;
    for (int64_t k = 0; k < g.weight.k; k += kScaleBlock) {
      const int64_t k_end = k + kScaleBlock < g.weight.k ? k + kScaleBlock : g.weight.k;
      DecodeBlock<Weight>(g, panels, panel, count, k, k_end, wide);
      ForRowPasses<kFmaRowTile>(g.m, [&](auto rows, int64_t row) {
        LargeBlock<Weight, rows.value>(g, panels, panel, count, row, k, k_end, wide, a);
      });
    }
  }
}

template <class Weight>
void GemmOf(const GemmArguments& g) {
  const Panels panels(g.weight);
  // Few rows decode weights in registers; more rows would decode them again for each pass.
  if (g.m > kFmaRowTile) return LargeGemm<Weight>(g, panels);
  WithCount<kFmaRowTile>(g.m, [&](auto rows) { SmallGemm<Weight, rows.value>(g, panels); });
}

void Gemm(const GemmArguments& g) {
  switch (g.weight.dtype) {
    case DType::kF8E4M3:
      return GemmOf<E4M3Weight>(g);
    case DType::kF32:
      return GemmOf<F32Weight>(g);
    case DType::kI4:
      return GemmOf<Int4Weight>(g);
    default:
      return GemmOf<BF16Weight>(g);
  }
}

}  // namespace
}  // namespace epic::kernels
