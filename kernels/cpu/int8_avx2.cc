// Family `int8` on AVX2, and the quantiser of rows. Compiled with flags for AVX2: see
// CMakeLists.txt.
#include <immintrin.h>

#include "kernels/cpu/int8_kernels.h"
#include "kernels/cpu/int8_layout.h"

namespace epic::kernels {
namespace {

constexpr int kRowTile = 4;
constexpr int TilePanels(int rows) { return rows == 1 ? 4 : 1; }

struct Weights16 {
  __m256i low, high;
  static Weights16 Load(const std::byte* p) {
    const auto* v = reinterpret_cast<const __m256i*>(p);
    return {_mm256_load_si256(v), _mm256_load_si256(v + 1)};
  }
};

// |w| ≤ 128 unsigned times ±a, |a| ≤ 127: two such products fit in 16 bits.
struct Sums16 {
  __m256i low, high;

  void Clear() { low = high = _mm256_setzero_si256(); }
  static __m256i Products(__m256i a, __m256i w) {
    // The instruction takes unsigned times signed bytes, so the weight's sign moves to the row's
    // value. 2 · 128 · 127 fits in 16 bits, so nothing saturates.
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  void Dot(const std::byte* four, Weights16 w) {
    int32_t word;
    __builtin_memcpy(&word, four, 4);
    const __m256i a = _mm256_set1_epi32(word);
    low = _mm256_add_epi32(low, Products(a, w.low));
    high = _mm256_add_epi32(high, Products(a, w.high));
  }
  void Finish(Int8Row row, const float* scales, int columns, float* c) const {
    const __m256 factor = _mm256_set1_ps(row.scale);
    // The order (sum · weight scale) · row scale is the profile's. C may end within the 16 columns.
    alignas(32) float values[16];
    _mm256_store_ps(
        values,
        _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(low), _mm256_load_ps(scales)), factor));
    _mm256_store_ps(
        values + 8,
        _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(high), _mm256_load_ps(scales + 8)), factor));
    for (int i = 0; i < columns; ++i) c[i] = values[i];
  }
};

}  // namespace
}  // namespace epic::kernels

// The lanes come first: the rest is written over them.
#include "kernels/cpu/int8_gemm_inl.h"

namespace epic::kernels {
namespace {

constexpr uint32_t kInfinityBits = 0x7f80;            // of BF16
constexpr uint32_t kSmallestBits = (127 - 100) << 7;  // 2⁻¹⁰⁰

float AsFloat(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// BF16 bits without the sign, as numbers: NaN is larger than infinity, and that than the rest.
uint32_t LargestBits(const BF16* row, int64_t k) {
  __m256i largest = _mm256_setzero_si256();
  const __m256i magnitude = _mm256_set1_epi16(0x7fff);
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + i));
    largest = _mm256_max_epu16(largest, _mm256_and_si256(x, magnitude));
  }
  alignas(32) uint16_t lanes[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
  uint32_t result = 0;
  for (const uint16_t lane : lanes) result = lane > result ? lane : result;
  for (; i < k; ++i) {
    const uint32_t bits = row[i].bits & 0x7fffu;
    result = bits > result ? bits : result;
  }
  return result;
}

__m256i Quantised(__m128i bf16, __m256 inverse) {
  const __m256 x = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bf16), 16));
  // Adding 1.5·2²³ rounds to nearest even, as RoundToInt of quantize.h does.
  const __m256 rounder = _mm256_set1_ps(0x1.8p23f);
  const __m256 shifted = _mm256_add_ps(_mm256_mul_ps(x, inverse), rounder);
  return _mm256_cvttps_epi32(_mm256_sub_ps(shifted, rounder));
}

}  // namespace

void QuantiseInt8Row(const BF16* row, int64_t k, std::byte* to) {
  // Inputs past K are zeros, as those of the weights are.
  __builtin_memset(to + k, 0, Int8RowBytes(k) - k);
  const uint32_t largest_bits = LargestBits(row, k);
  Int8Row end{};
  if (largest_bits < kSmallestBits || largest_bits >= kInfinityBits) {
    __builtin_memset(to, 0, k);
    if (largest_bits >= kInfinityBits) end.scale = __builtin_nanf("");
  } else {
    const float largest = AsFloat(largest_bits << 16);
    const float inverse = 127.0f / largest;
    end.scale = largest / 127.0f;
    __m256i sums = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + 16 <= k; i += 16) {
      const auto* from = reinterpret_cast<const __m128i*>(row + i);
      const __m256i words =
          _mm256_packs_epi32(Quantised(_mm_loadu_si128(from), _mm256_set1_ps(inverse)),
                             Quantised(_mm_loadu_si128(from + 1), _mm256_set1_ps(inverse)));
      // This adds up 128 · Σ values, the surplus of VNNI's sums, whose weights are 128 too large
      // (int8_layout.h).
      sums = _mm256_add_epi32(sums, _mm256_madd_epi16(words, _mm256_set1_epi16(128)));
      // packs works in halves of 128 bits: this puts the quarters in order.
      const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
      _mm_storeu_si128(
          reinterpret_cast<__m128i*>(to + i),
          _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
    }
    for (; i < k; ++i) {
      const float x = AsFloat(static_cast<uint32_t>(row[i].bits) << 16);
      const auto value = static_cast<int8_t>((x * inverse + 0x1.8p23f) - 0x1.8p23f);
      to[i] = static_cast<std::byte>(value);
      end.surplus += 128 * value;
    }
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums);
    for (const int32_t lane : lanes) end.surplus += lane;
  }
  __builtin_memcpy(to + Int8RowOffset(k), &end, sizeof(end));
}

const Int8Kernels& Avx2Int8Kernels() {
  static constexpr Int8Kernels kKernels = {.name = "AVX2", .gemm = &Gemm};
  return kKernels;
}

}  // namespace epic::kernels
