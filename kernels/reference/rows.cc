#include "kernels/reference/rows.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/math.h"

namespace epic::kernels {
namespace {

// The order of all norms, which the vectors of 16 lanes of the CPU backend give.
float SumOfSquares(const float* x, int64_t count) {
  float lanes[16] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i % 16] = Fma(x[i], x[i], lanes[i % 16]);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

}  // namespace

Row RmsNorm(const float* x, std::span<const float> weight, float eps) {
  const auto count = static_cast<int64_t>(weight.size());
  const float mean = SumOfSquares(x, count) / static_cast<float>(count);
  // IEEE 754 rounds both operations correctly, so the vector code has the same bits.
  const float factor = 1.0f / std::sqrt(mean + eps);
  Row y(count);
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] * factor * weight[i];
  return y;
}

Row Multiply(const ReferenceMatrix& weight, const Row& x) {
  KERNEL_CHECK_LE(weight.cols,
                  std::ssize(x));  // a record's row holds its rope part behind the latent
  Row y(weight.rows);
  weight.Multiply(x.data(), y.data());
  return y;
}

void Rotate(const RopeTable& table, int row, bool interleaved, float* x) {
  const int pairs = table.pairs;
  for (int i = 0; i < pairs; ++i) {
    const float c = table.cos[row * pairs + i];
    const float s = table.sin[row * pairs + i];
    float& first = x[interleaved ? 2 * i : i];
    float& second = x[interleaved ? 2 * i + 1 : i + pairs];
    // One product is rounded and the other is not: which of them is part of the profile.
    const float rotated = Fma(first, c, -(second * s));
    second = Fma(second, c, first * s);
    first = rotated;
  }
}

std::span<const float> Values(Tensor vector) {
  KERNEL_CHECK_EQ(vector.rows, 1);
  return {vector.As<float>(), static_cast<size_t>(vector.cols)};
}

}  // namespace epic::kernels
