// The kernel of argmax.h: a block per row.
#pragma once

#include <limits>

#include "kernels/cuda/argmax.h"
#include "kernels/cuda/device/device.h"

namespace epic::kernels::cuda {

struct ArgmaxKernel {
  using Params = ArgmaxArguments;
  static constexpr int kThreads = 512;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kSharedBytes = kWarps * 8;
  static constexpr int kBlocksPerSm = 2;
  struct alignas(8) Best {
    float value;
    int32_t id;
  };

  // Ties go to the lowest id, so the order in which lanes and warps compare cannot change the
  // choice.
  EPIC_DEVICE static void Take(const Best& other, Best& best) {
    const bool tie = other.value == best.value;
    if (tie ? other.id < best.id : other.value > best.value) best = other;
  }

  EPIC_DEVICE static void Run(const Params& a) {
    const float* logits = a.logits + int64_t{BlockIndex()} * a.columns;
    // Id 0 stands for a row of −∞ alone, which no comparison improves on.
    Best best = {-std::numeric_limits<float>::infinity(), 0};
    for (int i = ThreadIndex(); i < a.limit; i += kThreads) {
      // A thread meets its ids in ascending order, so `>` keeps the lowest of equal ones.
      if (logits[i] > best.value) best = {logits[i], i};
    }
    for (int mask = 16; mask > 0; mask /= 2) {
      Take({ShuffleXor(best.value, mask), ShuffleXor(best.id, mask)}, best);
    }
    const auto of_warps = SharedAt<Best>(0, kWarps);
    if (LaneIndex() == 0) of_warps.Store(WarpIndex(), best);
    SyncBlock();
    // No barrier follows, so threads may leave here.
    if (ThreadIndex() != 0) return;
    for (int warp = 1; warp < kWarps; ++warp) Take(of_warps.Load(warp), best);
    a.ids[BlockIndex()] = best.id;
  }
};

}  // namespace epic::kernels::cuda
