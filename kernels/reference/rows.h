// Rows of FP32 values and what the oracle does with one: plain loops in the order that
// docs/numerics.md fixes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/reference/reference_weights.h"
#include "kernels/rope_table.h"
#include "kernels/tensor.h"

namespace epic::kernels {

using Row = std::vector<float>;

// x · weight / √(mean x² + eps). The squares are summed in 16 lanes, then by a tree.
Row RmsNorm(const float* x, std::span<const float> weight, float eps);

// W·x.
Row Multiply(const ReferenceMatrix& weight, const Row& x);

// Rotates the table's pairs of x [rope_dim] by the angles of row `row`: pairs are (2i, 2i + 1), or
// (i, i + rope_dim/2) if not interleaved.
void Rotate(const RopeTable& table, int row, bool interleaved, float* x);

// The values of a tensor of one row.
std::span<const float> Values(Tensor vector);

// body(i) for each i of [0, count) in the order in which a family adds products: ascending, or in
// pairs with the odd one of each first.
template <class Body>
void InOrder(int64_t count, bool odd_first, const Body& body) {
  for (int64_t i = 0; i < (odd_first ? (count + 1) / 2 * 2 : count); ++i) {
    const int64_t at = odd_first ? i ^ 1 : i;
    if (at < count) body(at);
  }
}

}  // namespace epic::kernels
