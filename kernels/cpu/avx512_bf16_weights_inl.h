// The weights of family `avx512-bf16` as it multiplies them: BF16 as they lie, E4M3 and INT4
// decoded in registers. Included by avx512_bf16_gemm.cc alone, which is compiled for its
// instruction set.
#pragma once

#include "kernels/cpu/drive_inl.h"
#include "kernels/cpu/e4m3_lookup.h"
#include "kernels/cpu/tile_layout.h"

namespace epic::kernels {
namespace {

// Most tiles of K that many rows pass over: 16 of four decoded panels are 64 KiB, which stay in the
// second level of cache. Chosen by this sum, not measured apart.
constexpr int64_t kStretchMax = 16;

// Four rows of a tile of BF16: [16 outputs][2 inputs] each.
struct Quarter {
  __m512i rows[4];
};

template <int kLines>
[[gnu::always_inline]] inline void PrefetchLines(const std::byte* from) {
#pragma GCC unroll 4
  for (int i = 0; i < kLines; ++i) {
    _mm_prefetch(reinterpret_cast<const char*>(from + 64 * i), _MM_HINT_T0);
  }
}

// Each type of weight has
//   At(panel, t)            where tile t of a panel lies as it is packed
//   kDecoded                whether a tile becomes BF16 by Load, a quarter i of it at a time;
//                           Prefetch fetches what lies `ahead` bytes past that quarter
//   kTilesPerScale          tiles whose sum is multiplied by Scale(header, t); 0: no scales
//   kStretch                tiles of K that many rows pass over before the next are decoded
struct BF16Weight {
  static constexpr bool kDecoded = false;
  static constexpr int64_t kTilesPerScale = 0, kStretch = kStretchMax;
  static const std::byte* At(const std::byte* panel, int64_t t) {
    return panel + t * kBf16TileBytes;
  }
};

struct E4M3Weight {
  static constexpr bool kDecoded = true;
  static constexpr int64_t kTilesPerScale = kernels::kTilesPerScale, kStretch = kTilesPerScale;
  static const std::byte* At(const std::byte* panel, int64_t t) {
    return panel + t * kCodeTileBytes;
  }
  static void Prefetch(const std::byte* panel, int64_t t, int i, int64_t ahead) {
    PrefetchLines<2>(At(panel, t) + 128 * i + ahead);
  }
  static Quarter Load(const std::byte* panel, int64_t t, int i) {
    const std::byte* codes = At(panel, t) + 128 * i;
    const Bf16Rows front = DecodeE4M3Rows(codes);
    const Bf16Rows back = DecodeE4M3Rows(codes + 64);
    return {{front.first, front.second, back.first, back.second}};
  }
  // A block of 128 outputs has one scale, and a panel of 16 lies within a block.
  static __m512 Scale(const std::byte* header, int64_t t) {
    return _mm512_set1_ps(reinterpret_cast<const float*>(header)[t / kTilesPerScale]);
  }
};

// BF16 of nibbles − 8, twice: the lookup goes by five bits of a word.
struct alignas(64) NibbleValues {
  uint16_t words[32] = {};
  constexpr NibbleValues() {
    for (int i = 0; i < 32; ++i) {
      const auto value = static_cast<float>(i % 16 - 8);
      words[i] = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, value) >> 16);
    }
  }
};
constexpr NibbleValues kNibbleValues;

struct NibbleWeight {
  static constexpr bool kDecoded = true;
  // A group of 32 inputs is a tile, and has a scale of its own.
  static constexpr int64_t kTilesPerScale = 1, kStretch = kStretchMax;
  static const std::byte* At(const std::byte* panel, int64_t t) { return panel + Int4LinesAt(t); }
  static void Prefetch(const std::byte* panel, int64_t t, int i, int64_t ahead) {
    // Scales and lines of two groups stand apart, so the distance is counted in groups.
    const int64_t then = t + (ahead + kInt4GroupBytes - 1) / kInt4GroupBytes;
    if (i == 0) PrefetchLines<1>(panel + Int4ScalesAt(then));
    PrefetchLines<1>(At(panel, then) + kInt4LineBytes * i);
  }
  // A line holds four rows of the tile, a nibble of each word for each row (int4_layout.h). The
  // lookup ignores the bits above its five.
  static Quarter Load(const std::byte* panel, int64_t t, int i) {
    const __m512i values = _mm512_load_si512(kNibbleValues.words);
    const __m512i line = _mm512_load_si512(At(panel, t) + kInt4LineBytes * i);
    return {{_mm512_permutexvar_epi16(line, values),
             _mm512_permutexvar_epi16(_mm512_srli_epi16(line, 4), values),
             _mm512_permutexvar_epi16(_mm512_srli_epi16(line, 8), values),
             _mm512_permutexvar_epi16(_mm512_srli_epi16(line, 12), values)}};
  }
  // A scale for each of the panel's 16 outputs.
  static __m512 Scale(const std::byte* panel, int64_t t) {
    const __m256i scales =
        _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + Int4ScalesAt(t)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(scales), 16));
  }
};

}  // namespace
}  // namespace epic::kernels
