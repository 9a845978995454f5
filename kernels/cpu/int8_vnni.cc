// Family `int8` on AVX-512 VNNI. Compiled with flags for it: see CMakeLists.txt.
#include <immintrin.h>

#include "kernels/cpu/int8_kernels.h"
#include "kernels/cpu/int8_layout.h"

namespace epic::kernels {
namespace {

// At most 24 sums stay in registers, beside the weights of each panel and a row's value.
constexpr int kRowTile = 12;
constexpr int TilePanels(int rows) { return rows <= 3 ? 8 : 24 / rows; }

// The instruction multiplies unsigned by signed bytes, so that weights are taken 128 too large.
struct Weights16 {
  __m512i v;
  static Weights16 Load(const std::byte* p) {
    return {_mm512_xor_si512(_mm512_load_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)))};
  }
};

struct Sums16 {
  __m512i v;

  void Clear() { v = _mm512_setzero_si512(); }
  void Dot(const std::byte* four, Weights16 w) {
    int32_t word;
    __builtin_memcpy(&word, four, 4);
    v = _mm512_dpbusd_epi32(v, w.v, _mm512_set1_epi32(word));
  }
  void Finish(Int8Row row, const float* scales, int columns, float* c) const {
    // The subtraction is exact in INT32, so these are the bits of AVX2 and AMX.
    const __m512i surplus = _mm512_set1_epi32(row.surplus);
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(v, surplus));
    const __m512 value =
        _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_load_ps(scales)), _mm512_set1_ps(row.scale));
    _mm512_mask_storeu_ps(c, static_cast<__mmask16>((1u << columns) - 1u), value);
  }
};

}  // namespace
}  // namespace epic::kernels

// The lanes come first: the rest is written over them.
#include "kernels/cpu/int8_gemm_inl.h"

namespace epic::kernels {

const Int8Kernels& VnniInt8Kernels() {
  static constexpr Int8Kernels kKernels = {.name = "AVX-512 VNNI", .gemm = &Gemm};
  return kKernels;
}

}  // namespace epic::kernels
