// Family `int8` on AVX-512 VNNI. Compiled with flags for it: see CMakeLists.txt.
#include <immintrin.h>

#include "kernels/cpu/int8_kernels.h"

namespace epic::kernels {
namespace {

constexpr int kRowTile = 6;
constexpr int kFewRows = 3;
constexpr int TilePanels(int rows) { return rows <= kFewRows ? 8 : 4; }

struct Weights16 {
  __m512i v;
  static Weights16 Load(const std::byte* p) { return {_mm512_load_si512(p)}; }
};

// The instruction multiplies unsigned by signed bytes, so that row values are taken 128 too large.
struct Sums16 {
  __m512i v;

  static Sums16 Zero() { return {_mm512_setzero_si512()}; }
  void Dot(int32_t four, Weights16 w) {
    const __m512i shifted = _mm512_set1_epi32(four ^ static_cast<int32_t>(0x80808080u));
    v = _mm512_dpbusd_epi32(v, shifted, w.v);
  }
  void Finish(const std::byte* shift, const float* scales, float row_scale, int columns,
              float* c) const {
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(v, _mm512_load_si512(shift)));
    const __m512 value =
        _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_load_ps(scales)), _mm512_set1_ps(row_scale));
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
