#include "kernels/reference/attend.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/kv_view.h"
#include "kernels/math.h"

namespace epic::kernels {
namespace {

void Merge(const Partial& split, Partial& total) {
  const float maximum = split.maximum > total.maximum ? split.maximum : total.maximum;
  const float a = Rescale(total.maximum, maximum);
  const float b = Rescale(split.maximum, maximum);
  total.maximum = maximum;
  total.sum = Fma(total.sum, a, split.sum * b);
  for (size_t i = 0; i < total.values.size(); ++i) {
    total.values[i] = Fma(total.values[i], a, split.values[i] * b);
  }
}

}  // namespace

// Equal maxima may both be −∞, whose difference is NaN.
float Rescale(float from, float to) { return from == to ? 1.0f : Exp(from - to); }

void AttendHead(AttendSplit attend_split, float scale, int keys, const float* q, int value_dim,
                const KeyAt& key_at, float* out) {
  // A row sees itself at least; without a key the sum below would be 0.
  KERNEL_CHECK_GT(keys, 0);
  Partial total;
  for (int begin = 0; begin < keys; begin += kSplitTokens) {
    const int end = std::min(keys, begin + kSplitTokens);
    const Partial split = attend_split(scale, q, begin, end, value_dim, key_at);
    // The first split is taken as it is, as the CPU's and the card's merges take it.
    if (begin == 0) {
      total = split;
    } else {
      Merge(split, total);
    }
  }
  const float factor = 1.0f / total.sum;
  for (int i = 0; i < value_dim; ++i) out[i] = Fma(total.values[i], factor, 0.0f);  // no −0
}

}  // namespace epic::kernels
