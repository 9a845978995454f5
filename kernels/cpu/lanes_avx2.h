// Sixteen floats in two AVX2 registers. Included by one source file only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace epic::kernels {
namespace {

struct F16 {
  __m256 lo, hi;
};
struct M16 {
  __m256 lo, hi;
};

// 16 registers hold eight vectors: attention keeps 4 keys by one vector of lanes, large products 6
// rows by one panel.
constexpr int kVectorsPerAttentionTile = 1;
constexpr int kLargeTilePanels = 1;
// How many panels the kernel for `rows` rows reads at once: as many sums as registers hold.
constexpr int SmallTilePanels(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

struct I16 {
  __m256i lo, hi;
};
inline I16 Bits(F16 x) { return {_mm256_castps_si256(x.lo), _mm256_castps_si256(x.hi)}; }
inline I16 FirstMask(int n) {
  const __m256i count = _mm256_set1_epi32(n);
  return {_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
          _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
}

inline F16 Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F16 Set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
// Masked loads and stores touch no memory past the n-th value, so a row may end at the end of a
// page.
inline F16 LoadN(const float* p, int n) {
  const I16 mask = FirstMask(n);
  return {_mm256_maskload_ps(p, mask.lo), _mm256_maskload_ps(p + 8, mask.hi)};
}
inline void Store(float* p, F16 x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
inline void StoreN(float* p, F16 x, int n) {
  const I16 mask = FirstMask(n);
  _mm256_maskstore_ps(p, mask.lo, x.lo);
  _mm256_maskstore_ps(p + 8, mask.hi, x.hi);
}
inline F16 operator+(F16 a, F16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline F16 operator-(F16 a, F16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline F16 operator*(F16 a, F16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline F16 operator/(F16 a, F16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline F16 Fma(F16 a, F16 b, F16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F16 Larger(F16 a, F16 b) {  // a > b ? a : b
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline F16 Smaller(F16 a, F16 b) {  // a < b ? a : b
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline F16 Negative(F16 x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(x.lo, sign), _mm256_xor_ps(x.hi, sign)};
}
inline M16 Less(F16 a, F16 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
inline M16 Equal(F16 a, F16 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ)};
}
inline F16 Select(M16 mask, F16 yes, F16 no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, mask.lo), _mm256_blendv_ps(no.hi, yes.hi, mask.hi)};
}
// Lanes whose value is at least `key`.
inline M16 AtLeast(const int32_t* values, int32_t key) {
  // AVX2 compares by `>` alone.
  const __m256i below = _mm256_set1_epi32(key - 1);
  const auto* p = reinterpret_cast<const __m256i*>(values);
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_loadu_si256(p), below)),
          _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_loadu_si256(p + 1), below))};
}
// 2ⁿ from shifted = n + 1.5·2²³.
inline F16 PowerOfTwo(F16 shifted, float rounder) {
  // shifted's low bits hold n: minus those of the rounder, plus the bias 127, they are the
  // exponent.
  const __m256i offset =
      _mm256_sub_epi32(_mm256_set1_epi32(127), _mm256_castps_si256(_mm256_set1_ps(rounder)));
  const I16 bits = Bits(shifted);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(bits.lo, offset), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(bits.hi, offset), 23))};
}

inline __m256 WidenBF16(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline F16 LoadBF16(const void* p) {
  const auto* words = static_cast<const __m128i*>(p);
  return {WidenBF16(_mm_loadu_si128(words)), WidenBF16(_mm_loadu_si128(words + 1))};
}
inline __m256i RoundBF16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  // Rounding could turn a NaN into infinity or zero: its upper half is kept and made quiet, as
  // ToBF16 does.
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  return _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
}
inline void StoreBF16(void* p, F16 x) {
  const __m256i packed = _mm256_packus_epi32(RoundBF16(x.lo), RoundBF16(x.hi));
  // packus works in halves of 128 bits: 0xd8 puts the quarters in order.
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

// Takes values that BF16 holds exactly, and NaN: the lower half of their bits is dropped.
inline void StoreExactBF16(void* p, F16 x) {
  const __m256i lo = _mm256_srli_epi32(_mm256_castps_si256(x.lo), 16);
  const __m256i hi = _mm256_srli_epi32(_mm256_castps_si256(x.hi), 16);
  const __m256i packed = _mm256_packus_epi32(lo, hi);
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

inline void SplitPairs(__m256i x, __m256& first, __m256& second) {
  first = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
  second = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(-65536)));
}
// 16 pairs of BF16: first members, second members.
inline void LoadBF16Pairs(const char* p, F16& first, F16& second) {
  const auto* pairs = reinterpret_cast<const __m256i*>(p);
  SplitPairs(_mm256_load_si256(pairs), first.lo, second.lo);
  SplitPairs(_mm256_load_si256(pairs + 1), first.hi, second.hi);
}

// 16 E4M3 codes, each times 2⁻⁸: their bits as binary16 (whose denormals convert exactly whatever
// FTZ and DAZ say). NaN codes come out as ±480·2⁻⁸.
inline F16 LoadE4M3(const char* p) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  // Shifted by 7, E4M3's exponent and mantissa are those of binary16; the mask clears the sign's
  // copy. The exponents' biases differ by 8.
  const __m256i half =
      _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<short>(0xbfff)));
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(half)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
}

// A line of INT4 (int4_layout.h): its nibbles, as two's complement.
struct Int4Line {
  __m256i lo, hi;
};
inline Int4Line LoadInt4Line(const char* line) {
  const auto* halves = reinterpret_cast<const __m256i*>(line);
  // A nibble is value + 8: with its top bit flipped it is the value in two's complement.
  const __m256i sign = _mm256_set1_epi8(static_cast<char>(0x88));
  return {_mm256_xor_si256(_mm256_load_si256(halves), sign),
          _mm256_xor_si256(_mm256_load_si256(halves + 1), sign)};
}
inline __m256 Int4Values(__m256i words, int bits_above) {
  // The nibble moves to the top of its word, and the arithmetic shift back extends its sign.
  const __m256i top = _mm256_sll_epi32(words, _mm_cvtsi32_si128(bits_above));
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 28));
}
// Nibble j of each word: `first` has the values of even words, `second` those of odd words.
inline void Int4Pair(const Int4Line& line, int j, F16& first, F16& second) {
  first = {Int4Values(line.lo, 28 - 4 * j), Int4Values(line.hi, 28 - 4 * j)};
  second = {Int4Values(line.lo, 12 - 4 * j), Int4Values(line.hi, 12 - 4 * j)};
}

}  // namespace
}  // namespace epic::kernels
