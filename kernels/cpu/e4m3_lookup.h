// BF16 of the E4M3 codes 0 .. 127, low and high bytes apart: two lookups of 64 bytes decode 64
// codes, to which the signs are added. Included by files compiled for AVX-512 with VBMI only.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace epic::kernels {
namespace {

struct alignas(64) E4M3Bytes {
  uint8_t low[128] = {};
  uint8_t high[128] = {};

  constexpr E4M3Bytes() {
    for (int code = 0; code < 128; ++code) {
      int exponent = code >> 3;
      int mantissa = code & 7;
      if (exponent == 0 && mantissa != 0) {  // below the smallest normal number: shift it up
        exponent = 1;
        while (mantissa < 8) {
          mantissa *= 2;
          --exponent;
        }
        mantissa -= 8;
        exponent += 120;
      // Code 127 is NaN: it becomes BF16's quiet NaN.
      } else if (code == 127) {
        exponent = 255;
        mantissa = 4;
      } else if (exponent != 0) {
        // The biases are 7 and 127.
        exponent += 120;
      }
      const int bits = exponent << 7 | mantissa << 4;
      low[code] = static_cast<uint8_t>(bits & 255);
      high[code] = static_cast<uint8_t>(bits >> 8);
    }
  }
};
constexpr E4M3Bytes kE4M3Bytes;

// Two rows of a tile of BF16: [16 outputs][2 inputs] each.
struct Bf16Rows {
  __m512i first;
  __m512i second;
};

// 64 codes in the order of CodeOffset (tile_layout.h), by which interleaving low and high bytes
// gives whole rows. A lookup goes by the lowest 7 bits of a code, so the sign needs no masking.
inline Bf16Rows DecodeE4M3Rows(const std::byte* codes) {
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  const __m512i code = _mm512_loadu_si512(codes);
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kE4M3Bytes.low), code,
                                               _mm512_load_si512(kE4M3Bytes.low + 64));
  const __m512i magnitude = _mm512_permutex2var_epi8(_mm512_load_si512(kE4M3Bytes.high), code,
                                                     _mm512_load_si512(kE4M3Bytes.high + 64));
  const __m512i high = _mm512_or_si512(magnitude, _mm512_and_si512(code, sign));
  return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
}

}  // namespace
}  // namespace epic::kernels
