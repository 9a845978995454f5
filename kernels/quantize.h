// The quantisers: pure functions of a row or group, so that every machine makes the same bytes.
//
// INT8, of weights per output and of activations per row: scale = largest |x| / 127, value =
// x · (127 / largest) rounded to nearest even. INT4, of weights per 32 inputs: scale = largest |x|
// / 7.5 rounded to BF16, value = x / scale rounded to nearest even, within −8 .. 7.
// What holds no finite number gets scale NaN and values 0, what is tiny (< 2⁻¹⁰⁰) scale 0.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/number.h"
#include "kernels/tensor.h"

namespace epic::kernels {

// What loading does to weights of a floating-point type (not to router, norms, embedding, kv_b).
// Weights that are integers in the checkpoint stay as they are.
enum class Quantization : uint8_t { kNone, kInt8, kInt4 };

// More inputs could overflow an INT32 sum of INT8 products.
inline constexpr int64_t kInt8InputsMax = int64_t{1} << 17;
inline constexpr float kSmallestQuantised = 0x1p-100f;

// The type in which a weight is kept: what is neither FP8 nor integer becomes BF16 (round to
// nearest even) unless it is quantised.
constexpr DType PackedDType(DType source, int64_t cols, Quantization quantization) {
  if (source == DType::kI8 || source == DType::kI4) return source;
  if (quantization == Quantization::kInt8 && cols <= kInt8InputsMax) return DType::kI8;
  if (quantization == Quantization::kInt4) return DType::kI4;
  return source == DType::kF8E4M3 ? DType::kF8E4M3 : DType::kBF16;
}

// Names the types of weights and activations in a numeric profile. INT8 weights have INT8
// activations.
constexpr const char* ProfileTypes(Quantization quantization) {
  switch (quantization) {
    case Quantization::kInt8:
      return "w:int8,a:int8";
    case Quantization::kInt4:
      return "w:int4,a:bf16";
    default:
      return "w:checkpoint,a:bf16";
  }
}

// Rounds to nearest even; |x| ≤ 2²².
inline int RoundToInt(float x) { return static_cast<int>((x + 0x1.8p23f) - 0x1.8p23f); }

// Returns the scale.
float QuantiseInt8(const float* x, int64_t count, int8_t* q);
// One group: count ≤ 32. Returns the scale.
BF16 QuantiseInt4(const float* x, int64_t count, int8_t* q);

// A row of a weight as INT8 and as INT4: as stored if the source is of that type, else quantised.
// q [cols]; scales [ceil(cols/32)], denormal ones made 0.
float ReadInt8Row(const SourceMatrix& source, int64_t row, int8_t* q);
void ReadInt4Row(const SourceMatrix& source, int64_t row, int8_t* q, BF16* scales);

// The weight that an INT4 value stands for: rounded once to BF16, denormals flushed.
inline float Int4Weight(int q, BF16 scale) {
  const float product = static_cast<float>(q) * ToFloat(scale);
  if (std::abs(product) < std::numeric_limits<float>::min()) return 0;
  return RoundToBF16(product);
}

}  // namespace epic::kernels
