#include "kernels/reference/reference_weights.h"

#include <algorithm>
#include <cmath>

#include "kernels/math.h"
#include "kernels/number.h"

namespace epic::kernels {
namespace {

ReferenceMatrix Empty(int64_t rows, int64_t cols) {
  ReferenceMatrix matrix;
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.packed_bytes = rows * cols * int64_t{sizeof(float)};
  matrix.transposed.resize(rows * cols);
  return matrix;
}

// k_begin is even, so that pairs of inputs stay together where blocks of K are summed apart.
void AddProducts(const ReferenceMatrix& w, const float* x, int64_t k_begin, int64_t k_end,
                 float* out) {
  for (int64_t i = k_begin; i < (w.odd_first ? (k_end + 1) / 2 * 2 : k_end); ++i) {
    // VDPBF16PS takes inputs in the order 1, 0, 3, 2, … Of a last pair that is cut only the even
    // input exists.
    const int64_t k = w.odd_first ? i ^ 1 : i;
    if (k >= k_end) continue;
    const float* column = w.transposed.data() + k * w.rows;
    for (int64_t n = 0; n < w.rows; ++n) out[n] = Fma(x[k], column[n], out[n]);
  }
}

void MultiplyIntegers(const ReferenceMatrix& w, const float* x, float* out) {
  std::vector<int8_t> q(w.cols);
  const float scale = QuantiseInt8(x, w.cols, q.data());
  for (int64_t n = 0; n < w.rows; ++n) {
    // The sum is exact in INT32, so any order gives these bits.
    int32_t sum = 0;
    for (int64_t k = 0; k < w.cols; ++k) sum += q[k] * w.integers[k * w.rows + n];
    // The order is (sum · weight scale) · row scale, and each product is rounded.
    out[n] = static_cast<float>(sum) * w.row_scales[n] * scale;
  }
}

// Returns the scale of a block of x, which becomes its codes' values. As family sm90 quantises rows
// (docs/numerics.md).
float QuantiseBlock(float* x, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(x[i]));
  const float scale = std::max(largest, 1e-4f) / 448.0f;
  for (int64_t i = 0; i < count; ++i) x[i] = E4M3ToFloat(ToE4M3(x[i] * (1.0f / scale)));
  return scale;
}

ReferenceMatrix MakeInt8Matrix(const SourceMatrix& source) {
  ReferenceMatrix matrix = Empty(source.rows, source.cols);
  // A matrix holds one form of the weights: Multiply chooses by which one is there.
  matrix.transposed.clear();
  matrix.integers.resize(source.rows * source.cols);
  std::vector<int8_t> row(source.cols);
  for (int64_t n = 0; n < source.rows; ++n) {
    matrix.row_scales.push_back(ReadInt8Row(source, n, row.data()));
    for (int64_t k = 0; k < source.cols; ++k) matrix.integers[k * source.rows + n] = row[k];
  }
  return matrix;
}

ReferenceMatrix MakeInt4Matrix(const SourceMatrix& source) {
  ReferenceMatrix matrix = Empty(source.rows, source.cols);
  std::vector<int8_t> row(source.cols);
  std::vector<BF16> scales((source.cols + kInt4Group - 1) / kInt4Group);
  matrix.group_scales.resize(std::ssize(scales) * source.rows);
  for (int64_t n = 0; n < source.rows; ++n) {
    ReadInt4Row(source, n, row.data(), scales.data());
    for (int64_t k = 0; k < source.cols; ++k) {
      const int64_t group = k / kInt4Group;
      matrix.group_scales[group * source.rows + n] = ToFloat(scales[group]);
      matrix.transposed[k * source.rows + n] = static_cast<float>(row[k]);
    }
  }
  return matrix;
}

}  // namespace

void ReferenceMatrix::Multiply(const float* x, float* out) const {
  if (!integers.empty()) return MultiplyIntegers(*this, x, out);
  std::fill_n(out, rows, 0.0f);
  if (!scales.empty() || !group_scales.empty()) return MultiplyScaled(x, out);
  AddProducts(*this, x, 0, cols, out);
}

void ReferenceMatrix::MultiplyScaled(const float* x, float* out) const {
  const int64_t size = scales.empty() ? kInt4Group : kScaleBlock;
  const int64_t blocks = (cols + size - 1) / size;
  std::vector<float> partial(rows);
  // QuantiseBlock changes this copy, never the caller's row.
  std::vector<float> row(x, x + cols);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = b * size;
    const int64_t end = std::min(cols, begin + size);
    const float row_scale = quantised_rows ? QuantiseBlock(row.data() + begin, end - begin) : 1.0f;
    std::fill(partial.begin(), partial.end(), 0.0f);
    AddProducts(*this, row.data(), begin, end, partial.data());
    for (int64_t n = 0; n < rows; ++n) {
      const float scale =
          scales.empty() ? group_scales[b * rows + n] : scales[n / kScaleBlock * blocks + b];
      // Blocks join in ascending order, each by one multiply-add with the product of both scales.
      out[n] = Fma(partial[n], row_scale * scale, out[n]);
    }
  }
}

ReferenceMatrix MakeReferenceF32Matrix(const SourceMatrix& source) {
  ReferenceMatrix matrix = Empty(source.rows, source.cols);
  std::vector<float> row(source.cols);
  for (int64_t n = 0; n < source.rows; ++n) {
    ReadSource(source, n, 0, source.cols, row.data());
    for (int64_t k = 0; k < source.cols; ++k) matrix.transposed[k * source.rows + n] = row[k];
  }
  return matrix;
}

ReferenceMatrix MakeReferenceMatrix(const SourceMatrix& source, Quantization quantization) {
  // This is the type in which the CPU packs it, so the oracle has the same values.
  const DType dtype = PackedDType(source.dtype, source.cols, quantization);
  if (dtype == DType::kI8) return MakeInt8Matrix(source);
  if (dtype == DType::kI4) return MakeInt4Matrix(source);
  ReferenceMatrix matrix = MakeReferenceF32Matrix(source);
  if (dtype != DType::kF8E4M3) {
    for (float& value : matrix.transposed) value = RoundToBF16(value);
    return matrix;
  }
  // The family keeps E4M3 as binary16 bits 2⁻⁸ too small and makes up for it in the scale.
  for (int64_t n = 0; n < source.rows; ++n) {
    for (int64_t k = 0; k < source.cols; ++k) {
      matrix.transposed[k * source.rows + n] =
          E4M3ToFloat(LoadUnaligned<uint8_t>(source.data, n * source.cols + k)) * 0x1p-8f;
    }
  }
  for (int64_t n = 0; n < source.rows; n += kScaleBlock) {
    for (int64_t k = 0; k < source.cols; k += kScaleBlock) {
      matrix.scales.push_back(SourceScale(source, n, k) * 0x1p8f);
    }
  }
  return matrix;
}

ReferenceMatrix SliceKvB(const SourceMatrix& kv_b, int64_t row, int64_t count, bool transpose,
                         bool rounded) {
  ReferenceMatrix matrix = transpose ? Empty(kv_b.cols, count) : Empty(count, kv_b.cols);
  std::vector<float> values(kv_b.cols);
  for (int64_t n = 0; n < count; ++n) {
    // kv_b is dequantised whatever its type, since absorbed attention splits it.
    ReadSource(kv_b, row + n, 0, kv_b.cols, values.data());
    for (int64_t k = 0; k < kv_b.cols; ++k) {
      const int64_t at = transpose ? n * kv_b.cols + k : k * count + n;
      matrix.transposed[at] = rounded ? RoundToBF16(values[k]) : values[k];
    }
  }
  return matrix;
}

}  // namespace epic::kernels
