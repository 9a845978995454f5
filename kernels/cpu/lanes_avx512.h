// Sixteen floats in one AVX-512 register. Included by one source file only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace epic::kernels {
namespace {

struct F16 {
  __m512 v;
};
using M16 = __mmask16;

// There are 32 registers: attention keeps 8 keys by 2 vectors of lanes, large products 6 rows by 4
// panels.
constexpr int kVectorsPerAttentionTile = 2;
constexpr int kLargeTilePanels = 4;
// How many panels the kernel for `rows` rows reads at once: as many sums as registers hold.
constexpr int SmallTilePanels(int rows) { return rows <= 3 ? 8 : 4; }

inline __mmask16 First(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline F16 Zero() { return {_mm512_setzero_ps()}; }
inline F16 Set1(float x) { return {_mm512_set1_ps(x)}; }
inline F16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F16 LoadN(const float* p, int n) { return {_mm512_maskz_loadu_ps(First(n), p)}; }
inline void Store(float* p, F16 x) { _mm512_storeu_ps(p, x.v); }
inline void StoreN(float* p, F16 x, int n) { _mm512_mask_storeu_ps(p, First(n), x.v); }
inline F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F16 Fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F16 Larger(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }   // a > b ? a : b
inline F16 Smaller(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }  // a < b ? a : b
inline F16 Negative(F16 x) {
  return {_mm512_castsi512_ps(
      _mm512_xor_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(INT32_MIN)))};
}
inline M16 Less(F16 a, F16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
inline M16 Equal(F16 a, F16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
inline F16 Select(M16 mask, F16 yes, F16 no) { return {_mm512_mask_blend_ps(mask, no.v, yes.v)}; }
// Lanes whose value is at least `key`.
inline M16 AtLeast(const int32_t* values, int32_t key) {
  return _mm512_cmpge_epi32_mask(_mm512_loadu_si512(values), _mm512_set1_epi32(key));
}
// 2ⁿ from shifted = n + 1.5·2²³.
inline F16 PowerOfTwo(F16 shifted, float rounder) {
  // shifted's low bits hold n: minus those of the rounder, plus the bias 127, they are the
  // exponent.
  const __m512i offset =
      _mm512_sub_epi32(_mm512_set1_epi32(127), _mm512_castps_si512(_mm512_set1_ps(rounder)));
  return {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(shifted.v), offset), 23))};
}

inline F16 LoadBF16(const void* p) {
  const __m256i x = _mm256_loadu_si256(static_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}
inline void StoreBF16(void* p, F16 x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  // Rounding could turn a NaN into infinity or zero: its upper half is kept and made quiet, as
  // ToBF16 does.
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i rounded = _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, up, quiet), 16);
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}

// Takes values that BF16 holds exactly, and NaN: the lower half of their bits is dropped.
inline void StoreExactBF16(void* p, F16 x) {
  const __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(x.v), 16);
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bits));
}

// 16 pairs of BF16: first members, second members.
inline void LoadBF16Pairs(const char* p, F16& first, F16& second) {
  const __m512i x = _mm512_load_si512(p);
  first.v = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
  second.v = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(-65536)));
}

// 16 E4M3 codes, each times 2⁻⁸: their bits as binary16 (whose denormals convert exactly whatever
// FTZ and DAZ say). NaN codes come out as ±480·2⁻⁸.
inline F16 LoadE4M3(const char* p) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  // Shifted by 7, E4M3's exponent and mantissa are those of binary16; the mask clears the sign's
  // copy. The exponents' biases differ by 8.
  const __m256i half =
      _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<short>(0xbfff)));
  return {_mm512_cvtph_ps(half)};
}

// A line of INT4 (int4_layout.h).
using Int4Line = __m512i;
inline Int4Line LoadInt4Line(const char* line) { return _mm512_load_si512(line); }
// Nibble j of each word: `first` has the values of even words, `second` those of odd words. The
// lookup goes by the lowest four bits of each lane.
inline void Int4Pair(Int4Line line, int j, F16& first, F16& second) {
  const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i even = _mm512_srl_epi32(line, _mm_cvtsi32_si128(4 * j));
  const __m512i odd = _mm512_srl_epi32(line, _mm_cvtsi32_si128(16 + 4 * j));
  first.v = _mm512_permutexvar_ps(even, values);
  second.v = _mm512_permutexvar_ps(odd, values);
}

}  // namespace
}  // namespace epic::kernels
