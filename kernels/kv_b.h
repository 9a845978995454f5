// kv_b taken apart: W_UKᵀ and W_UV of each head, rounded to BF16. The checkpoint has one matrix
// [heads·(nope + v), kv_rank]: for each head first the rows of W_UK, then those of W_UV. Absorbed
// attention multiplies queries by W_UKᵀ once, so that keys are the latents themselves.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/number.h"

namespace epic::kernels {

// keys [kv_rank, nope] and values [v, kv_rank] of `head`.
inline void SplitKvB(const AttentionSource& source, int head, BF16* keys, BF16* values) {
  const AttentionShape& shape = source.shape;
  const int64_t rank = shape.kv_rank;
  const int64_t first = head * int64_t{shape.nope_dim + shape.v_dim};
  std::vector<float> row(rank);
  for (int64_t d = 0; d < shape.nope_dim; ++d) {
    ReadSource(source.kv_b, first + d, 0, rank, row.data());
    for (int64_t i = 0; i < rank; ++i) keys[i * shape.nope_dim + d] = ToBF16(row[i]);
  }
  for (int64_t d = 0; d < shape.v_dim; ++d) {
    ReadSource(source.kv_b, first + shape.nope_dim + d, 0, rank, row.data());
    for (int64_t i = 0; i < rank; ++i) values[d * rank + i] = ToBF16(row[i]);
  }
}

}  // namespace epic::kernels
