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

  EPIC_DEVICE static void Take(const Best& other, Best& best) {
    const bool tie = other.value == best.value;
    if (tie ? other.id < best.id : other.value > best.value) best = other;
  }

  EPIC_DEVICE static void Run(const Params& a) {
    const float* logits = a.logits + int64_t{BlockIndex()} * a.columns;
    Best best = {-std::numeric_limits<float>::infinity(), 0};
    for (int i = ThreadIndex(); i < a.limit; i += kThreads) {
      if (logits[i] > best.value) best = {logits[i], i};
    }
    for (int mask = 16; mask > 0; mask /= 2) {
      Take({ShuffleXor(best.value, mask), ShuffleXor(best.id, mask)}, best);
    }
    const auto of_warps = SharedAt<Best>(0, kWarps);
    if (LaneIndex() == 0) of_warps.Store(WarpIndex(), best);
    SyncBlock();
    if (ThreadIndex() != 0) return;
    for (int warp = 1; warp < kWarps; ++warp) Take(of_warps.Load(warp), best);
    a.ids[BlockIndex()] = best.id;
  }
};

}  // namespace epic::kernels::cuda
