// The kernels of amx_gemm_inl.h over the real tile unit, and their AVX-512 code over an emulated
// one. Compiled for AVX-512 with VBMI, which every CPU with AMX has: see CMakeLists.txt. Tile
// instructions are written out, as the intrinsics take no template parameter for a register.
#include <immintrin.h>

#include "kernels/cpu/amx_emulated_tiles.h"
#include "kernels/cpu/amx_gemm_inl.h"
#include "kernels/cpu/e4m3_lookup.h"

namespace epic::kernels {
namespace {

class RealTiles {
 public:
  void Configure(const int (&rows)[8]) {
    // This is the layout of LDTILECFG's operand (Intel SDM); palette 1 is the one with eight tiles
    // of 16 rows of 64 bytes.
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof(config) == 64);
    for (int t = 0; t < 8; ++t) {
      // Rows are always whole: a shorter K has been padded with zeros.
      config.row_bytes[t] = 64;
      config.rows[t] = static_cast<uint8_t>(rows[t]);
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  // A tile state left in use makes every switch of threads save 8 KiB more, and may keep a core
  // from its deeper sleep.
  void Release() { __asm__ volatile("tilerelease" ::: "memory"); }

  template <int kTile>
  void Zero() {
    // volatile keeps the order among tile instructions: the compiler does not know their registers.
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  void Load(const void* from, int64_t stride_bytes) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(kTile)
                     : "memory");
  }
  template <int kTile>
  void Store(void* to, int64_t stride_bytes) const {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride_bytes), "i"(kTile)
                     : "memory");
  }
  template <int kC, int kA, int kB>
  void DotBF16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
  template <int kC, int kA, int kB>
  void DotInt8() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
};

__mmask16 First(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

struct WideVectors {
  static void Prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }

  static void DecodeE4M3(const std::byte* codes, std::byte* tile) {
    for (int pair = 0; pair < 8; ++pair) {
      const Bf16Rows rows = DecodeE4M3Rows(codes + 64 * pair);
      _mm512_store_si512(tile + 128 * pair, rows.first);
      _mm512_store_si512(tile + 128 * pair + 64, rows.second);
    }
  }

  // Float32 bits rounded to their upper half, to nearest even. NaN stays NaN: scales are quiet.
  static __m512i RoundUp(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  }

  static void DecodeInt4(const std::byte* scales_at, const std::byte* lines, std::byte* tile) {
    // The lookup takes the low four bits of a word and ignores the rest, so shifted lines need no
    // mask.
    const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i scales = _mm256_load_si256(reinterpret_cast<const __m256i*>(scales_at));
    const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(scales), 16));
    Repeat<16>([&](auto r) {
      const __m512i line = _mm512_load_si512(lines + r.value / 4 * kInt4LineBytes);
      const __m512i even_nibbles = _mm512_srli_epi32(line, r.value % 4 * 4);
      const __m512i odd_nibbles = _mm512_srli_epi32(line, r.value % 4 * 4 + 16);
      const __m512 even = _mm512_mul_ps(_mm512_permutexvar_ps(even_nibbles, values), scale);
      const __m512 odd = _mm512_mul_ps(_mm512_permutexvar_ps(odd_nibbles, values), scale);
      const __m512i high = _mm512_and_si512(RoundUp(odd), _mm512_set1_epi32(-65536));
      _mm512_store_si512(tile + 64 * r.value,
                         _mm512_or_si512(_mm512_srli_epi32(RoundUp(even), 16), high));
    });
  }

  static void AddScaled(const std::byte* partial, float scale, bool first, int rows, int columns,
                        float* c, int64_t c_stride) {
    const __mmask16 mask = First(columns);
    const __m512 factor = _mm512_set1_ps(scale);
    for (int r = 0; r < rows; ++r) {
      const __m512 value = _mm512_load_ps(partial + 64 * r);
      float* to = c + r * c_stride;
      // C holds nothing yet at the first block, so it must not be read.
      const __m512 before = first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, to);
      _mm512_mask_storeu_ps(to, mask, _mm512_fmadd_ps(value, factor, before));
    }
  }

  static void FinishInt8(const std::byte* sums, const float* scales, const std::byte* row_scale,
                         int64_t row_bytes, int rows, int columns, float* c, int64_t c_stride) {
    const __mmask16 mask = First(columns);
    const __m512 factor = _mm512_load_ps(scales);
    for (int r = 0; r < rows; ++r) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + 64 * r));
      float scale;
      __builtin_memcpy(&scale, row_scale + r * row_bytes, 4);
      // Every instruction set takes (sum · weight scale) · row scale in this order
      // (docs/numerics.md).
      const __m512 value = _mm512_mul_ps(_mm512_mul_ps(sum, factor), _mm512_set1_ps(scale));
      _mm512_mask_storeu_ps(c + r * c_stride, mask, value);
    }
  }
};

}  // namespace

const AmxKernels& RealAmxKernels() {
  static constexpr AmxKernels kKernels = {.name = "AMX",
                                          .gemm = &Gemm<RealTiles, WideVectors>,
                                          .gemm_int8 = &GemmInt8<RealTiles, WideVectors>};
  return kKernels;
}

const AmxKernels& EmulatedTileAmxKernels() {
  static constexpr AmxKernels kKernels = {.name = "emulated AMX tiles, AVX-512",
                                          .gemm = &Gemm<EmulatedTiles, WideVectors>,
                                          .gemm_int8 = &GemmInt8<EmulatedTiles, WideVectors>};
  return kKernels;
}

}  // namespace epic::kernels
