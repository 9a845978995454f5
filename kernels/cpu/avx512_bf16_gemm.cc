// Family `avx512-bf16`. Compiled for AVX-512 with VBMI and BF16: see CMakeLists.txt.
//
// Few rows: decoded in registers, several panels read at once, each a stream of its own. Many
// rows: kGroup panels by a stretch of K that stays in the second level of cache, decoded once; C
// is stored between stretches and continued.
#include "kernels/cpu/avx512_bf16_kernels.h"
#include "kernels/cpu/avx512_bf16_weights_inl.h"
#include "kernels/cpu/drive_inl.h"
#include "kernels/cpu/tile_layout.h"

namespace epic::kernels {
namespace {

// Up to kFewRows rows weights go straight from memory into products, and decoded weights up to
// twice as many rows, since more rows first store them in scratch memory. Chosen, not measured
// apart: gemm_benchmark has the speed of either way.
constexpr int kFewRows = 4;
// 6 rows by 4 panels are 24 sums in registers; 4 rows of weights and an input are the rest of 32.
constexpr int kRowTile = 6;
constexpr int kGroup = 4;
static_assert(kAvx512Bf16ScratchBytes == kGroup * kStretchMax * kBf16TileBytes);

__mmask16 First(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

struct Panels {
  const std::byte* base;
  int64_t bytes;
  int64_t header_bytes;

  explicit Panels(const PackedWeight& weight)
      : base(weight.data),
        bytes(TilePanelBytes(weight.k, weight.dtype)),
        header_bytes(TileHeaderBytes(weight.k, weight.dtype)) {}
  const std::byte* Header(int64_t panel) const { return base + panel * bytes; }
  const std::byte* Tiles(int64_t panel) const { return Header(panel) + header_bytes; }
};

// acc continues over a pair of inputs: row r's at a + r·row_bytes. Each sum has one accumulator and
// meets the pairs in order: VDPBF16PS adds the odd input's product first. That is the family's
// tree.
template <int kRows>
[[gnu::always_inline]] inline void AddPair(__m512i w, const std::byte* a, int64_t row_bytes,
                                           __m512* acc, int acc_stride) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    int32_t pair;
    __builtin_memcpy(&pair, a + r * row_bytes, 4);
    __m512& sum = acc[r * acc_stride];
    sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w),
                           reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)));
  }
}

// acc continues over tile t of panels; `a` stands at its inputs. Weights that are decoded come by
// quarters, all others by rows, so that sums and inputs fit in registers.
template <class Weight, int kRows, int kPanels>
[[gnu::always_inline]] inline void AddTile(const std::byte* const (&panels)[kPanels],
                                           const std::byte* a, int64_t row_bytes, int64_t t,
                                           __m512 (&acc)[kRows][kPanels]) {
  if constexpr (!Weight::kDecoded) {
#pragma GCC unroll 4
    for (int i = 0; i < 16; ++i) {
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        const std::byte* row = Weight::At(panels[p], t) + 64 * i;
        PrefetchLines<1>(row + AheadBytes(kPanels));
        AddPair<kRows>(_mm512_load_si512(row), a + 4 * i, row_bytes, &acc[0][p], kPanels);
      }
    }
  } else {
    for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        Weight::Prefetch(panels[p], t, i, AheadBytes(kPanels));
        const Quarter quarter = Weight::Load(panels[p], t, i);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          AddPair<kRows>(quarter.rows[j], a + 16 * i + 4 * j, row_bytes, &acc[0][p], kPanels);
        }
      }
    }
  }
}

// acc continues over the tiles [begin, end) of panels; `a` stands at the inputs of the first of all
// tiles.
template <class Weight, int kRows, int kPanels>
[[gnu::always_inline]] inline void Accumulate(const std::byte* const (&panels)[kPanels],
                                              const std::byte* a, int64_t row_bytes, int64_t begin,
                                              int64_t end, __m512 (&acc)[kRows][kPanels]) {
  for (int64_t t = begin; t < end; ++t) {
    AddTile<Weight>(panels, a + 64 * t, row_bytes, t, acc);
  }
}

template <int kRows, int kPanels>
[[gnu::always_inline]] inline void Clear(__m512 (&acc)[kRows][kPanels]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) acc[r][p] = _mm512_setzero_ps();
  }
}

// acc continues over `count` tiles that stand as `Form` says at `panels`; they are the tiles of K
// from t_begin on, with the scales of Weight at `headers`.
template <class Weight, class Form, int kRows, int kPanels>
[[gnu::always_inline]] inline void Continue(const std::byte* const (&headers)[kPanels],
                                            const std::byte* const (&panels)[kPanels],
                                            const std::byte* a, int64_t row_bytes, int64_t t_begin,
                                            int64_t count, __m512 (&acc)[kRows][kPanels]) {
  if constexpr (Weight::kTilesPerScale == 0) {
    Accumulate<Form>(panels, a, row_bytes, 0, count, acc);
  } else {
    for (int64_t t = 0; t < count; t += Weight::kTilesPerScale) {
      // A scale's sum starts from 0, so a stretch never ends within one (kStretch).
      const int64_t t_end = t + Weight::kTilesPerScale < count ? t + Weight::kTilesPerScale : count;
      __m512 partial[kRows][kPanels];
      Clear(partial);
      Accumulate<Form>(panels, a, row_bytes, t, t_end, partial);
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        const __m512 scale = Weight::Scale(headers[p], t_begin + t);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          acc[r][p] = _mm512_fmadd_ps(partial[r][p], scale, acc[r][p]);
        }
      }
    }
  }
}

float* Destination(const GemmArguments& g, int64_t row, int64_t panel) {
  return g.c + row * g.c_stride + panel * kTilePanel - g.n_begin;
}

__mmask16 Columns(const GemmArguments& g, int64_t panel) {
  const int64_t left = g.n_end - panel * kTilePanel;
  return First(static_cast<int>(left < kTilePanel ? left : kTilePanel));
}

// All kRows == g.m rows by kPanels panels that stand `apart`.
template <class Weight, int kRows, int kPanels>
void SmallTile(const GemmArguments& g, const Panels& panels, int64_t panel, int64_t apart) {
  const std::byte* headers[kPanels];
  const std::byte* tiles[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    headers[p] = panels.Header(panel + p * apart);
    tiles[p] = panels.Tiles(panel + p * apart);
  }
  __m512 acc[kRows][kPanels];
  Clear(acc);
  Continue<Weight, Weight>(headers, tiles, g.prepared, g.prepared_stride, 0, Bf16Tiles(g.weight.k),
                           acc);
  for (int p = 0; p < kPanels; ++p) {
    const int64_t at = panel + p * apart;
    for (int r = 0; r < kRows; ++r) {
      _mm512_mask_storeu_ps(Destination(g, r, at), Columns(g, at), acc[r][p]);
    }
  }
}

template <class Weight, int kRows>
void SmallGemm(const GemmArguments& g, const Panels& panels) {
  // As many streams of weights as there are registers for: with scales each sum is held twice.
  constexpr bool kScaled = Weight::kTilesPerScale > 0;
  constexpr int kPanels = kRows == 1               ? 8
                          : kRows <= 3 && !kScaled ? 6
                          : kRows <= 3             ? 4
                          : kRows == 4             ? 2
                                                   : 1;
  SweepPanels<kPanels, 1>(g.n_begin / kTilePanel, (g.n_end + kTilePanel - 1) / kTilePanel,
                          [&](auto count, int64_t panel, int64_t apart) {
                            SmallTile<Weight, kRows, count.value>(g, panels, panel, apart);
                          });
}

// Some panels by a stretch of K from tile t_begin on.
template <int kPanels>
struct Stretch {
  int64_t panel;
  int64_t t_begin;
  int64_t t_count;
  const std::byte* headers[kPanels];
  const std::byte* tiles[kPanels];  // of BF16
};

// The rows [row, row + kRows) by a stretch.
template <class Weight, int kRows, int kPanels>
void LargeTile(const GemmArguments& g, const Stretch<kPanels>& stretch, int64_t row) {
  const int64_t row_bytes = g.prepared_stride;
  __m512 acc[kRows][kPanels];
  Clear(acc);
  // C holds the sums of the stretches before: continued, they are one chain.
  if (stretch.t_begin > 0) {
    for (int p = 0; p < kPanels; ++p) {
      const int64_t at = stretch.panel + p;
      for (int r = 0; r < kRows; ++r) {
        acc[r][p] = _mm512_maskz_loadu_ps(Columns(g, at), Destination(g, row + r, at));
      }
    }
  }
  Continue<Weight, BF16Weight>(stretch.headers, stretch.tiles,
                               g.prepared + row * row_bytes + 64 * stretch.t_begin, row_bytes,
                               stretch.t_begin, stretch.t_count, acc);
  for (int p = 0; p < kPanels; ++p) {
    const int64_t at = stretch.panel + p;
    for (int r = 0; r < kRows; ++r) {
      _mm512_mask_storeu_ps(Destination(g, row + r, at), Columns(g, at), acc[r][p]);
    }
  }
}

// Tiles [t_begin, t_end) of a panel, as BF16.
template <class Weight>
const std::byte* Ready(const std::byte* panel, int64_t t_begin, int64_t t_end, std::byte* to) {
  if constexpr (!Weight::kDecoded) {
    return Weight::At(panel, t_begin);
  } else {
    for (int64_t t = t_begin; t < t_end; ++t) {
      std::byte* tile = to + (t - t_begin) * kBf16TileBytes;
      for (int i = 0; i < 4; ++i) {
        Weight::Prefetch(panel, t, i, AheadBytes(1));
        const Quarter quarter = Weight::Load(panel, t, i);
        for (int r = 0; r < 4; ++r) {
          _mm512_store_si512(tile + 64 * (4 * i + r), quarter.rows[r]);
        }
      }
    }
    return to;
  }
}

// All rows by kPanels panels.
template <class Weight, int kPanels>
void LargeGroup(const GemmArguments& g, const Panels& panels, int64_t panel) {
  const int64_t k_tiles = Bf16Tiles(g.weight.k);
  Stretch<kPanels> stretch = {.panel = panel};
  for (int p = 0; p < kPanels; ++p) stretch.headers[p] = panels.Header(panel + p);
  for (int64_t t = 0; t < k_tiles; t += Weight::kStretch) {
    const int64_t t_end = t + Weight::kStretch < k_tiles ? t + Weight::kStretch : k_tiles;
    stretch.t_begin = t;
    stretch.t_count = t_end - t;
    for (int p = 0; p < kPanels; ++p) {
      std::byte* scratch = g.scratch + p * Weight::kStretch * kBf16TileBytes;
      stretch.tiles[p] = Ready<Weight>(panels.Tiles(panel + p), t, t_end, scratch);
    }
    ForRowPasses<kRowTile>(
        g.m, [&](auto rows, int64_t row) { LargeTile<Weight, rows.value>(g, stretch, row); });
  }
}

template <class Weight>
void LargeGemm(const GemmArguments& g, const Panels& panels) {
  const int64_t end = (g.n_end + kTilePanel - 1) / kTilePanel;
  int64_t panel = g.n_begin / kTilePanel;
  // Panels left over go two and one at a time: the grouping changes no bit.
  for (; panel + kGroup <= end; panel += kGroup) LargeGroup<Weight, kGroup>(g, panels, panel);
  for (; panel + 2 <= end; panel += 2) LargeGroup<Weight, 2>(g, panels, panel);
  for (; panel < end; ++panel) LargeGroup<Weight, 1>(g, panels, panel);
}

template <class Weight>
void GemmOf(const GemmArguments& g) {
  const Panels panels(g.weight);
  constexpr int kFew = Weight::kDecoded ? 2 * kFewRows : kFewRows;
  if (g.m > kFew) return LargeGemm<Weight>(g, panels);
  WithCount<kFew>(g.m, [&](auto rows) { SmallGemm<Weight, rows.value>(g, panels); });
}

void Gemm(const GemmArguments& g) {
  switch (g.weight.dtype) {
    case DType::kF8E4M3:
      return GemmOf<E4M3Weight>(g);
    case DType::kI4:
      return GemmOf<NibbleWeight>(g);
    default:
      return GemmOf<BF16Weight>(g);
  }
}

}  // namespace

const Avx512Bf16Kernels& RealAvx512Bf16Kernels() {
  static constexpr Avx512Bf16Kernels kKernels = {.gemm = &Gemm};
  return kKernels;
}

}  // namespace epic::kernels
