// Family `avx512-bf16`: a split's scores and sums are products of the family, whose inputs go in
// pairs, the odd one of each first (VDPBF16PS).
#include "kernels/math.h"
#include "kernels/number.h"
#include "kernels/reference/attend.h"

namespace epic::kernels {

Partial AttendSplitAvx512Bf16(float scale, const float* q, int begin, int end, int value_dim,
                              const KeyAt& key_at) {
  Partial split;
  split.values.resize(value_dim);
  std::vector<Row> values;
  Row weights;
  for (int position = begin; position < end; ++position) {
    const KeyAndValue& at = key_at(position);
    float score = 0;
    InOrder(std::ssize(at.key), true, [&](int64_t i) { score = Fma(q[i], at.key[i], score); });
    score *= scale;
    weights.push_back(score);
    values.push_back(at.value);
    // As in attend_fma.cc: a NaN does not become the maximum.
    split.maximum = score > split.maximum ? score : split.maximum;
  }
  for (float& weight : weights) {
    // The rounding comes before the sum, which adds up the weights that meet the values.
    weight = RoundToBF16(Exp(weight - split.maximum));
    split.sum += weight;
  }
  InOrder(std::ssize(weights), true, [&](int64_t j) {
    for (int i = 0; i < value_dim; ++i) {
      split.values[i] = Fma(weights[j], values[j][i], split.values[i]);
    }
  });
  return split;
}

}  // namespace epic::kernels
