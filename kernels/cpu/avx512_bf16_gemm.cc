// Family `avx512-bf16`. Compiled for AVX-512 with VBMI and BF16: see CMakeLists.txt.
//
// Few rows: decoded in registers, several panels read at once, each a stream of its own. Many
// rows: kGroup panels by a stretch of K that stays in the second level of cache, decoded once; C
// is stored between stretches and continued.
#include "kernels/cpu/avx512_bf16_kernels.h"
#include "kernels/cpu/drive_inl.h"
#include "kernels/cpu/e4m3_lookup.h"
#include "kernels/cpu/tile_layout.h"

namespace epic::kernels {
namespace {

constexpr int64_t kAheadBytes = 2048;
constexpr int kFewRows = 4;
constexpr int kRowTile = 6;
constexpr int kGroup = 4;
constexpr int64_t kStretchTiles = 16;
static_assert(kAvx512Bf16ScratchBytes == kGroup * kStretchTiles * kBf16TileBytes);

__mmask16 First(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

// A tile as packed; Rows(i): its rows 2·i and 2·i + 1. kPrepared: there is work to be done once for
// all of them, so that few panels are taken at a time.
struct BF16Weight {
  static constexpr bool kScaled = false, kDecoded = false, kPrepared = false;
  static constexpr int64_t kTileBytes = kBf16TileBytes;
  void Set(const std::byte* packed) { tile = packed; }
  Bf16Rows Rows(int i) const {
    return {_mm512_load_si512(tile + 128 * i), _mm512_load_si512(tile + 128 * i + 64)};
  }
  const std::byte* tile;
};

struct E4M3Weight {
  static constexpr bool kScaled = true, kDecoded = true, kPrepared = false;
  static constexpr int64_t kTileBytes = kCodeTileBytes;
  void Set(const std::byte* packed) { tile = packed; }
  Bf16Rows Rows(int i) const { return DecodeE4M3Rows(tile + 64 * i); }
  const std::byte* tile;
};

// [16 even inputs | 16 odd inputs] becomes [16 outputs][2 inputs].
struct alignas(64) PairOrder {
  uint16_t words[32] = {};
  constexpr PairOrder() {
    for (int i = 0; i < 32; ++i) words[i] = static_cast<uint16_t>(i % 2 * 16 + i / 2);
  }
};
constexpr PairOrder kPairOrder;

struct NibbleWeight {
  static constexpr bool kScaled = false, kDecoded = true, kPrepared = true;
  static constexpr int64_t kTileBytes = kInt4GroupBytes;
  void Set(const std::byte* packed) {
    const __m256i scales = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed));
    scale = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(scales), 16));
    pairs = reinterpret_cast<const __m128i*>(packed + kInt4ScaleBytes);
  }
  __m512i Row(int row) const {
    const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i pair = _mm512_cvtepu8_epi32(_mm_loadu_si128(pairs + row));
    const __m512i high = _mm512_srli_epi32(pair, 4);
    const __m512bh rounded =
        _mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_permutexvar_ps(high, values), scale),
                            _mm512_mul_ps(_mm512_permutexvar_ps(pair, values), scale));
    return _mm512_permutexvar_epi16(_mm512_load_si512(kPairOrder.words),
                                    reinterpret_cast<__m512i>(rounded));
  }
  Bf16Rows Rows(int i) const { return {Row(2 * i), Row(2 * i + 1)}; }

  __m512 scale;
  const __m128i* pairs;
};

struct Panels {
  const std::byte* base;
  int64_t bytes;
  int64_t header_bytes;

  explicit Panels(const PackedWeight& weight)
      : base(weight.data),
        bytes(TilePanelBytes(weight.k, weight.dtype)),
        header_bytes(TileHeaderBytes(weight.k, weight.dtype)) {}
  const std::byte* Tiles(int64_t panel) const { return base + panel * bytes + header_bytes; }
  const float* Scales(int64_t panel) const {
    return reinterpret_cast<const float*>(base + panel * bytes);
  }
};

// acc continues over two pairs of inputs: a at 8 bytes of kRows rows.
template <int kRows>
[[gnu::always_inline]] inline void AddPairs(const Bf16Rows& w, const std::byte* a,
                                            int64_t row_bytes, __m512* acc, int acc_stride) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    int32_t pairs[2];
    __builtin_memcpy(pairs, a + r * row_bytes, 8);
    __m512& sum = acc[r * acc_stride];
    sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w.first),
                           reinterpret_cast<__m512bh>(_mm512_set1_epi32(pairs[0])));
    sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w.second),
                           reinterpret_cast<__m512bh>(_mm512_set1_epi32(pairs[1])));
  }
}

template <class Weight, int kRows, int kPanels>
[[gnu::always_inline]] inline void Accumulate(const std::byte* const (&tiles)[kPanels],
                                              const std::byte* a, int64_t row_bytes, int64_t begin,
                                              int64_t end, __m512 (&acc)[kRows][kPanels]) {
  constexpr int kSide = Weight::kPrepared && kPanels % 2 == 0 ? 2 : kPanels;
  for (int64_t t = begin; t < end; ++t) {
#pragma GCC unroll 8
    for (int first = 0; first < kPanels; first += kSide) {
      Weight weights[kSide];
#pragma GCC unroll 8
      for (int p = 0; p < kSide; ++p) weights[p].Set(tiles[first + p] + t * Weight::kTileBytes);
#pragma GCC unroll 2
      for (int i = 0; i < 8; ++i) {
#pragma GCC unroll 8
        for (int p = 0; p < kSide; ++p) {
          const std::byte* ahead = tiles[first + p] + t * Weight::kTileBytes + kAheadBytes;
          ahead += i * Weight::kTileBytes / 8;
          _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
          if constexpr (Weight::kTileBytes > 512) {
            _mm_prefetch(reinterpret_cast<const char*>(ahead + 64), _MM_HINT_T0);
          }
          AddPairs<kRows>(weights[p].Rows(i), a + 64 * t + 8 * i, row_bytes, &acc[0][first + p],
                          kPanels);
        }
      }
    }
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
  const int64_t k_tiles = Bf16Tiles(g.weight.k);
  const int64_t row_bytes = TileRowBytes(g.weight.k);
  const std::byte* tiles[kPanels];
  for (int p = 0; p < kPanels; ++p) tiles[p] = panels.Tiles(panel + p * apart);
  __m512 acc[kRows][kPanels];
  Clear(acc);
  if constexpr (Weight::kScaled) {
    for (int64_t t = 0; t < k_tiles; t += kTilesPerScale) {
      const int64_t t_end = t + kTilesPerScale < k_tiles ? t + kTilesPerScale : k_tiles;
      __m512 partial[kRows][kPanels];
      Clear(partial);
      Accumulate<Weight>(tiles, g.prepared, row_bytes, t, t_end, partial);
      for (int p = 0; p < kPanels; ++p) {
        const __m512 scale = _mm512_set1_ps(panels.Scales(panel + p * apart)[t / kTilesPerScale]);
        for (int r = 0; r < kRows; ++r) {
          acc[r][p] = _mm512_fmadd_ps(partial[r][p], scale, acc[r][p]);
        }
      }
    }
  } else {
    Accumulate<Weight>(tiles, g.prepared, row_bytes, 0, k_tiles, acc);
  }
  for (int p = 0; p < kPanels; ++p) {
    const int64_t at = panel + p * apart;
    for (int r = 0; r < kRows; ++r) {
      _mm512_mask_storeu_ps(Destination(g, r, at), Columns(g, at), acc[r][p]);
    }
  }
}

template <class Weight, int kRows>
void SmallGemm(const GemmArguments& g, const Panels& panels) {
  constexpr int kPanels = kRows == 1 ? 8 : kRows <= 3 && !Weight::kScaled ? 6 : kRows <= 3 ? 4 : 2;
  SweepPanels<kPanels, 1>(g.n_begin / kTilePanel, (g.n_end + kTilePanel - 1) / kTilePanel,
                          [&](auto count, int64_t panel, int64_t apart) {
                            SmallTile<Weight, kRows, count.value>(g, panels, panel, apart);
                          });
}

// The rows [row, row + kRows) by a group's tiles [t_begin, t_end) of K, `tiles` being theirs as
// BF16.
template <class Weight, int kRows>
void LargeTile(const GemmArguments& g, const Panels& panels, int64_t panel, int64_t count,
               const std::byte* const (&tiles)[kGroup], int64_t row, int64_t t_begin,
               int64_t t_end) {
  const int64_t row_bytes = TileRowBytes(g.weight.k);
  __m512 acc[kRows][kGroup];
  Clear(acc);
  const bool first = t_begin == 0;
  if (!Weight::kScaled && !first) {
    for (int64_t p = 0; p < count; ++p) {
      for (int r = 0; r < kRows; ++r) {
        acc[r][p] =
            _mm512_maskz_loadu_ps(Columns(g, panel + p), Destination(g, row + r, panel + p));
      }
    }
  }
  Accumulate<BF16Weight>(tiles, g.prepared + row * row_bytes + 64 * t_begin, row_bytes, 0,
                         t_end - t_begin, acc);
  for (int64_t p = 0; p < count; ++p) {
    const __mmask16 columns = Columns(g, panel + p);
    for (int r = 0; r < kRows; ++r) {
      float* c = Destination(g, row + r, panel + p);
      __m512 value = acc[r][p];
      if constexpr (Weight::kScaled) {
        const __m512 before = first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(columns, c);
        const float scale = panels.Scales(panel + p)[t_begin / kTilesPerScale];
        value = _mm512_fmadd_ps(value, _mm512_set1_ps(scale), before);
      }
      _mm512_mask_storeu_ps(c, columns, value);
    }
  }
}

template <class Weight>
const std::byte* Ready(const std::byte* from, int64_t count, std::byte* to) {
  if constexpr (!Weight::kDecoded) return from;
  for (int64_t t = 0; t < count; ++t) {
    const std::byte* tile = from + t * Weight::kTileBytes;
    Weight weight;
    weight.Set(tile);
    for (int i = 0; i < 8; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(tile + 64 * i + kAheadBytes), _MM_HINT_T0);
      const Bf16Rows rows = weight.Rows(i);
      _mm512_store_si512(to + t * kBf16TileBytes + 128 * i, rows.first);
      _mm512_store_si512(to + t * kBf16TileBytes + 128 * i + 64, rows.second);
    }
  }
  return to;
}

template <class Weight>
void LargeGemm(const GemmArguments& g, const Panels& panels) {
  constexpr int64_t kStretch = Weight::kScaled ? kTilesPerScale : kStretchTiles;
  const int64_t k_tiles = Bf16Tiles(g.weight.k);
  const int64_t end = (g.n_end + kTilePanel - 1) / kTilePanel;
  for (int64_t panel = g.n_begin / kTilePanel; panel < end; panel += kGroup) {
    const int64_t count = end - panel < kGroup ? end - panel : kGroup;
    for (int64_t t = 0; t < k_tiles; t += kStretch) {
      const int64_t t_end = t + kStretch < k_tiles ? t + kStretch : k_tiles;
      const std::byte* tiles[kGroup];
      for (int p = 0; p < kGroup; ++p) {
        if (p >= count) {  // computed again and dropped
          tiles[p] = tiles[0];
          continue;
        }
        tiles[p] = Ready<Weight>(panels.Tiles(panel + p) + t * Weight::kTileBytes, t_end - t,
                                 g.scratch + p * kStretch * kBf16TileBytes);
      }
      ForRowPasses<kRowTile>(g.m, [&](auto rows, int64_t row) {
        LargeTile<Weight, rows.value>(g, panels, panel, count, tiles, row, t, t_end);
      });
    }
  }
}

template <class Weight>
void GemmOf(const GemmArguments& g) {
  const Panels panels(g.weight);
  if (g.m > kFewRows) return LargeGemm<Weight>(g, panels);
  WithCount<kFewRows>(g.m, [&](auto rows) { SmallGemm<Weight, rows.value>(g, panels); });
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
