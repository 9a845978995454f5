// The merge of MLA's splits; the splits are those of mla_decode_kernel.h.
#pragma once

#include "kernels/cuda/device/device.h"
#include "kernels/cuda/mla_decode.h"
#include "kernels/cuda/mla_softmax.h"

namespace epic::kernels::cuda {

// Merges the splits of the queries that have several, in ascending order: a block per place in a
// tile, a thread per kValues columns. The first split is taken as it is, so that a query's bits do
// not depend on an identity that −∞ and 0 would have to be.
template <int kLatent>
struct MlaMergeKernel {
  using Params = MlaArguments;
  static constexpr int kThreads = 128;
  static constexpr int kSharedBytes = 0;
  static constexpr int kBlocksPerSm = 1;
  static constexpr int kValues = kLatent / kThreads;

  EPIC_DEVICE static void Run(const Params& a) {
    const int t = BlockIndex() / kMlaTileQueries;
    // A replayed launch has blocks for the most tiles that any plan has.
    if (a.counts != nullptr && t >= a.counts[0]) return;
    const MlaTile tile = a.tiles[t];
    const int i = BlockIndex() % kMlaTileQueries;
    if (i >= tile.queries) return;
    const int query = tile.query + i;
    // The row's own position decides: its tile may have more splits, which the row does not see.
    const int splits = a.positions[query / a.heads] / a.split_tokens + 1;
    // The split kernel has written the result itself.
    if (splits == 1) return;
    const float exponent_scale = MlaExponentScale(a.softmax_scale);
    MlaState total = {0, 0};
    float values[kValues] = {};
    for (int s = 0; s < splits; ++s) {
      const int64_t row = a.units[tile.first_unit + s].partial + i;
      const MlaState split = a.partial_states[row];
      const float* from = a.partial_values + row * kLatent + ThreadIndex();
      const bool first = s == 0;
      const float maximum = first || split.maximum > total.maximum ? split.maximum : total.maximum;
      // The factor is not used for the first split, whose values are taken as they are.
      const float old_factor = first ? 0 : MlaRescale(total.maximum, maximum, exponent_scale);
      const float factor = MlaRescale(split.maximum, maximum, exponent_scale);
      total.maximum = maximum;
      total.sum = first ? split.sum : Fma(total.sum, old_factor, split.sum * factor);
      EPIC_UNROLL
      for (int j = 0; j < kValues; ++j) {
        const float value = from[j * kThreads];
        values[j] = first ? value : Fma(values[j], old_factor, value * factor);
      }
    }
    const float factor = 1.0f / total.sum;
    EPIC_UNROLL
    for (int j = 0; j < kValues; ++j) {
      a.out[int64_t{query} * kLatent + j * kThreads + ThreadIndex()] = ToBF16(values[j] * factor);
    }
  }
};

}  // namespace epic::kernels::cuda
