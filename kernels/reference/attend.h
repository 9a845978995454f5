// Attention of one query (a row's head) over the keys that it sees, in plain loops. Every family
// takes splits of 512 keys and merges them in order; what a family does within a split is a file of
// its own: attend_fma.cc, attend_avx512_bf16.cc.
#pragma once

#include <functional>
#include <limits>

#include "kernels/reference/rows.h"

namespace epic::kernels {

struct KeyAndValue {
  Row key;
  Row value;
};
// Returns the key and the value at a position; they are valid until the next call.
using KeyAt = std::function<const KeyAndValue&(int position)>;

// The state of a query over some keys: the largest score, Σ weights and Σ weight · value, where a
// key's weight is e^(score − maximum).
struct Partial {
  float maximum = -std::numeric_limits<float>::infinity();
  float sum = 0;
  Row values;
};

// The state over the keys [begin, end) of one split; score = scale · (q · key).
using AttendSplit = Partial (*)(float scale, const float* q, int begin, int end, int value_dim,
                                const KeyAt& key_at);
// FP32 throughout, blocks of 64 keys one after another, each of which rescales what came before.
Partial AttendSplitFma(float scale, const float* q, int begin, int end, int value_dim,
                       const KeyAt& key_at);
// One maximum for the split; weights rounded once to BF16; keys and inputs in pairs, the odd first.
Partial AttendSplitAvx512Bf16(float scale, const float* q, int begin, int end, int value_dim,
                              const KeyAt& key_at);

// out [value_dim] ← Σ softmax(scale · q · key) · value over the keys 0 .. keys − 1.
void AttendHead(AttendSplit attend_split, float scale, int keys, const float* q, int value_dim,
                const KeyAt& key_at, float* out);

// What sums of weights are multiplied by when the maximum changes.
float Rescale(float from, float to);

}  // namespace epic::kernels
