// The StepPlan on the device: uploaded once a step, read by every layer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/mla_decode.h"
#include "kernels/cuda/rows.h"
#include "kernels/rope_table.h"
#include "kernels/step_plan.h"

namespace epic::kernels::cuda {

inline constexpr int kSplitTokens = 512;

class StepArrays {
 public:
  explicit StepArrays(DeviceHeap& heap)
      : runtime_(heap.runtime()), integers_(heap), angles_(heap), units_(heap), tiles_(heap) {}

  void Begin(const StepPlan& plan, const Rope& rope);

  const int32_t* token_ids = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* pages = nullptr;
  const int32_t* record_index = nullptr;  // page·64 + place of each row's record
  const int32_t* logit_rows = nullptr;

  RopeTables rope(bool interleaved) const { return {cos_, sin_, interleaved}; }

  // Of the step's rows with so many heads: launches, one after another.
  struct Mla {
    MlaPlan plan;
    const MlaTile* tiles = nullptr;
    const MlaUnit* units = nullptr;
  };
  std::span<const Mla> MlaFor(const StepPlan& plan, int heads);

 private:
  DeviceRuntime& runtime_;
  Scratch integers_, angles_, units_, tiles_;
  RopeTable table_;
  const float* cos_ = nullptr;
  const float* sin_ = nullptr;
  std::vector<Mla> mla_;
  int mla_heads_ = 0;  // 0: not made yet
};

}  // namespace epic::kernels::cuda
