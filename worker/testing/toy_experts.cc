#include "worker/testing/toy_experts.h"

#include "base/check.h"
#include "worker/testing/mix.h"

namespace epic::worker {

void ToyExperts::Answer(int layer, int expert, std::span<const uint16_t> row,
                        std::span<uint16_t> answer) {
  uint64_t hash = Mix(layer + 1, expert + 1);
  for (const uint16_t value : row) hash = Mix(hash, value);
  for (uint16_t& value : answer) {
    hash = Mix(hash, 1);
    value = static_cast<uint16_t>(hash >> 48);
  }
}

void ToyExperts::Compute(int layer, kernels::Tensor rows, std::span<const kernels::ExpertRow> pairs,
                         kernels::Tensor out) {
  CHECK_EQ(out.rows, static_cast<int64_t>(pairs.size()));
  const auto hidden = static_cast<size_t>(rows.cols);
  for (size_t i = 0; i < pairs.size(); ++i) {
    CHECK(Holds(layer, pairs[i].expert)) << "layer " << layer << " expert " << pairs[i].expert;
    CHECK(pairs[i].row >= 0 && pairs[i].row < rows.rows) << pairs[i].row;
    Answer(layer, pairs[i].expert, {rows.Row<uint16_t>(pairs[i].row), hidden},
           {out.Row<uint16_t>(static_cast<int64_t>(i)), hidden});
  }
  if (on_compute_) on_compute_(layer, pairs);
}

}  // namespace epic::worker
