// The kernels of pairs.h.
#pragma once

#include "kernels/cuda/device/device.h"
#include "kernels/cuda/pairs.h"
#include "kernels/number.h"

namespace epic::kernels::cuda {

// A warp per group walks all pairs, so that places follow their order.
struct PlaceKernel {
  using Params = PlaceArguments;
  static constexpr int kThreads = 32;
  static constexpr int kSharedBytes = 0;
  static constexpr int kBlocksPerSm = 16;
  EPIC_DEVICE static void Run(const Params& a) {
    const int group = BlockIndex();
    int count = 0;
    for (int first = 0; first < a.pairs; first += 32) {
      const int pair = first + LaneIndex();
      const bool mine = pair < a.pairs && a.slots[pair] == a.first_slot + group;
      // Lanes are 32 pairs in order, so a pair's number counts the votes below its own lane.
      const uint32_t votes = Ballot(mine);
      const int number = count + CountOnes(votes & ((1u << LaneIndex()) - 1));
      if (mine) a.place[pair] = number < a.places ? group * a.places + number : -1;
      count += CountOnes(votes);
    }
    if (LaneIndex() == 0) a.group_rows[group] = count < a.places ? count : a.places;
  }
};

// A block per pair.
struct PackKernel {
  using Params = PackArguments;
  static constexpr int kThreads = 128;
  static constexpr int kSharedBytes = 0;
  static constexpr int kBlocksPerSm = 8;
  struct alignas(16) Chunk {
    uint32_t words[4];
  };
  EPIC_DEVICE static void Run(const Params& a) {
    const int pair = BlockIndex();
    const int place = a.place == nullptr ? pair : a.place[pair];
    // The pair is another rank's, or fills a table up.
    if (place < 0) return;
    const int row = a.row == nullptr ? pair / a.top_k : a.row[pair];
    const auto* from = reinterpret_cast<const Chunk*>(a.codes + int64_t{row} * a.columns);
    auto* to = reinterpret_cast<Chunk*>(a.packed_codes + int64_t{place} * a.columns);
    for (int i = ThreadIndex(); i < a.columns / 16; i += kThreads) to[i] = from[i];
    if (a.scales == nullptr) return;
    const int blocks = (a.columns + kScaleBlock - 1) / kScaleBlock;
    // Scales of masked groups are a matrix for each group.
    const int64_t scales = int64_t{place / a.places} * blocks;
    for (int b = ThreadIndex(); b < blocks; b += kThreads) {
      a.packed_scales[(scales + b) * a.packed_scale_stride + place % a.places] =
          a.scales[int64_t{b} * a.scale_stride + row];
    }
  }
};

struct CombineKernel {
  using Params = CombineArguments;
  static constexpr int kThreads = 256;
  static constexpr int kSharedBytes = 0;
  static constexpr int kBlocksPerSm = 4;
  EPIC_DEVICE static void Run(const Params& a) {
    const int row = BlockIndex();
    const int64_t first = int64_t{row} * a.top_k;
    for (int i = ThreadIndex(); i < a.columns; i += kThreads) {
      const int64_t at = int64_t{row} * a.columns + i;
      float sum = a.shared == nullptr ? 0.0f : ToFloat(a.shared[at]);
      for (int j = 0; j < a.top_k; ++j) {
        const int64_t from = a.place == nullptr ? first + j : a.place[first + j];
        sum = Fma(a.weights[first + j], ToFloat(a.answers[from * a.columns + i]), sum);
      }
      // The residual joins last, in one addition (docs/numerics.md).
      a.residual[at] += sum;
    }
  }
};

}  // namespace epic::kernels::cuda
