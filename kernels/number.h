// Conversions between number types, exact or rounded to nearest even. NaN stays NaN. They are the
// definition: vector code and kernels of cards must give the same bits, and number_test.cc compares
// with every value of the small types.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/host_device.h"
#include "kernels/tensor.h"

namespace epic::kernels {

EPIC_HOST_DEVICE inline float ToFloat(BF16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

EPIC_HOST_DEVICE inline BF16 ToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

EPIC_HOST_DEVICE inline float RoundToBF16(float value) { return ToFloat(ToBF16(value)); }

// IEEE binary16.
EPIC_HOST_DEVICE inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) {
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  }
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

// E4M3 "fn": no infinities, NaN is 0x7f and 0xff, the largest value 448.
EPIC_HOST_DEVICE inline bool IsE4M3NaN(uint8_t code) { return (code & 0x7fu) == 0x7fu; }

EPIC_HOST_DEVICE inline float E4M3ToFloat(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t exponent = (code >> 3) & 0xfu;
  const uint32_t mantissa = code & 7u;
  if (IsE4M3NaN(code)) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent != 0) {
    return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (mantissa << 20));
  }
  const float magnitude = static_cast<float>(mantissa) * 0x1p-9f;
  return sign != 0 ? -magnitude : magnitude;
}

// Rounds to nearest even; a value beyond 448 becomes 448, NaN stays NaN.
EPIC_HOST_DEVICE inline uint8_t ToE4M3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
  if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);  // 448
  if (magnitude < 0x3c800000u) {  // below 2^-6: multiples of 2^-9; adding 2^14 rounds to them
    const float rounded = std::bit_cast<float>(magnitude) + 16384.0f;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(rounded) & 0xfu));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
}

template <typename T>
T LoadUnaligned(const void* address, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(address) + index * int64_t{sizeof(T)}, sizeof(T));
  return value;
}

// Value `index` of an array of kF32, kF16 or kBF16.
inline float LoadReal(DType dtype, const void* address, int64_t index) {
  if (dtype == DType::kF32) return LoadUnaligned<float>(address, index);
  if (dtype == DType::kF16) return HalfToFloat(LoadUnaligned<uint16_t>(address, index));
  return ToFloat(LoadUnaligned<BF16>(address, index));
}

// The scale of W[row, col]; only for kF8E4M3, kI8 and kI4.
inline float SourceScale(const SourceMatrix& source, int64_t row, int64_t col) {
  if (source.dtype == DType::kI8) return LoadReal(source.scales_dtype, source.scales, row);
  const int64_t index = source.dtype == DType::kI4
                            ? row * source.scale_cols() + col / kInt4Group
                            : row / kScaleBlock * source.scale_cols() + col / kScaleBlock;
  return LoadReal(source.scales_dtype, source.scales, index);
}

// W[row, col] of kI4 without its scale: −8 .. 7.
inline int SourceNibble(const SourceMatrix& source, int64_t row, int64_t col) {
  const auto byte = LoadUnaligned<uint8_t>(source.data, row * source.row_bytes() + col / 2);
  return (col % 2 == 0 ? byte & 0xf : byte >> 4) - 8;
}

// out[0 .. count) ← W[row, col_begin ..], dequantised to FP32.
inline void ReadSource(const SourceMatrix& source, int64_t row, int64_t col_begin, int64_t count,
                       float* out) {
  const int64_t base = row * source.cols + col_begin;
  switch (source.dtype) {
    case DType::kF32:
      std::memcpy(out, static_cast<const char*>(source.data) + 4 * base, 4 * count);
      return;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = HalfToFloat(LoadUnaligned<uint16_t>(source.data, base + i));
      }
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = ToFloat(LoadUnaligned<BF16>(source.data, base + i));
      }
      return;
    case DType::kI8:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = static_cast<float>(LoadUnaligned<int8_t>(source.data, base + i)) *
                 SourceScale(source, row, 0);
      }
      return;
    case DType::kI4:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = static_cast<float>(SourceNibble(source, row, col_begin + i)) *
                 SourceScale(source, row, col_begin + i);
      }
      return;
    default:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = E4M3ToFloat(LoadUnaligned<uint8_t>(source.data, base + i)) *
                 SourceScale(source, row, col_begin + i);
      }
  }
}

}  // namespace epic::kernels
