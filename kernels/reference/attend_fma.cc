// Family `fma`.
#include <algorithm>

#include "kernels/kv_view.h"
#include "kernels/math.h"
#include "kernels/reference/attend.h"

namespace epic::kernels {
namespace {

// The keys [begin, end), at most 64, after those that `split` holds.
void AddBlock(float scale, const float* q, int begin, int end, const KeyAt& key_at,
              Partial& split) {
  std::vector<Row> values;
  Row weights;
  float maximum = split.maximum;
  for (int position = begin; position < end; ++position) {
    const KeyAndValue& at = key_at(position);
    float score = 0;
    for (size_t i = 0; i < at.key.size(); ++i) score = Fma(q[i], at.key[i], score);
    score *= scale;
    weights.push_back(score);
    values.push_back(at.value);
    // A NaN is never the larger one, so it does not become the maximum; its weight is NaN.
    maximum = score > maximum ? score : maximum;
  }
  const float correction = Rescale(split.maximum, maximum);
  split.maximum = maximum;
  // The rescaling is a rounding step of its own, for each block of 64 keys: so the block's size is
  // part of the profile.
  split.sum *= correction;
  for (float& value : split.values) value *= correction;
  for (float& weight : weights) {
    weight = Exp(weight - maximum);
    split.sum += weight;
  }
  for (size_t j = 0; j < weights.size(); ++j) {
    for (size_t i = 0; i < split.values.size(); ++i) {
      split.values[i] = Fma(weights[j], values[j][i], split.values[i]);
    }
  }
}

}  // namespace

Partial AttendSplitFma(float scale, const float* q, int begin, int end, int value_dim,
                       const KeyAt& key_at) {
  Partial split;
  split.values.resize(value_dim);
  for (int block = begin; block < end; block += kPageTokens) {
    AddBlock(scale, q, block, std::min(end, block + kPageTokens), key_at, split);
  }
  return split;
}

}  // namespace epic::kernels
