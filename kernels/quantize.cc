#include "kernels/quantize.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

namespace epic::kernels {
namespace {

// As bits: NaN is larger than infinity, and that than any number.
float LargestMagnitude(const float* x, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  }
  return std::bit_cast<float>(largest);
}

}  // namespace

float QuantiseInt8(const float* x, int64_t count, int8_t* q) {
  const float largest = LargestMagnitude(x, count);
  if (!std::isfinite(largest) || largest < kSmallestQuantised) {
    std::fill_n(q, count, int8_t{0});
    return std::isfinite(largest) ? 0 : std::numeric_limits<float>::quiet_NaN();
  }
  // The vector code multiplies by the inverse too (int8_avx2.cc), and both must give the same
  // codes.
  const float inverse = 127.0f / largest;
  for (int64_t i = 0; i < count; ++i) q[i] = static_cast<int8_t>(RoundToInt(x[i] * inverse));
  return largest / 127.0f;
}

BF16 QuantiseInt4(const float* x, int64_t count, int8_t* q) {
  const float largest = LargestMagnitude(x, count);
  if (!std::isfinite(largest) || largest < kSmallestQuantised) {
    std::fill_n(q, count, int8_t{0});
    return ToBF16(std::isfinite(largest) ? 0 : std::numeric_limits<float>::quiet_NaN());
  }
  // Codes go from −8 to 7, and 7.5 lies between their ends: the largest magnitude is off by about
  // half a step, whichever sign it has.
  const BF16 scale = ToBF16(largest / 7.5f);
  // The inverse is that of the rounded scale, which products use.
  const float inverse = 1.0f / ToFloat(scale);
  for (int64_t i = 0; i < count; ++i) {
    q[i] = static_cast<int8_t>(std::clamp(RoundToInt(x[i] * inverse), -8, 7));
  }
  return scale;
}

float ReadInt8Row(const SourceMatrix& source, int64_t row, int8_t* q) {
  if (source.dtype == DType::kI8) {
    std::memcpy(q, static_cast<const char*>(source.data) + row * source.cols, source.cols);
    return SourceScale(source, row, 0);
  }
  std::vector<float> values(source.cols);
  ReadSource(source, row, 0, source.cols, values.data());
  return QuantiseInt8(values.data(), source.cols, q);
}

void ReadInt4Row(const SourceMatrix& source, int64_t row, int8_t* q, BF16* scales) {
  std::vector<float> values;
  if (source.dtype != DType::kI4) {
    values.resize(source.cols);
    ReadSource(source, row, 0, source.cols, values.data());
  }
  for (int64_t k = 0; k < source.cols; k += kInt4Group) {
    const int64_t count = std::min<int64_t>(kInt4Group, source.cols - k);
    BF16& scale = scales[k / kInt4Group];
    if (source.dtype == DType::kI4) {
      for (int64_t i = k; i < k + count; ++i) {
        q[i] = static_cast<int8_t>(SourceNibble(source, row, i));
      }
      scale = ToBF16(SourceScale(source, row, k));
    } else {
      scale = QuantiseInt4(values.data() + k, count, q + k);
    }
    // Denormal scales are 0 here, as they would be in every product.
    if ((scale.bits & 0x7f80u) == 0) scale.bits = 0;
  }
}

}  // namespace epic::kernels
