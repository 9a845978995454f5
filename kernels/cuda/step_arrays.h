// The StepPlan on the device: uploaded once a step, read by every layer. Steps of one bucket of
// rows reuse the same device addresses, so recorded graphs stay valid.
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

class StepArrays {
 public:
  explicit StepArrays(DeviceHeap& heap)
      : runtime_(heap.runtime()),
        integers_(heap),
        pages_(heap),
        angles_(heap),
        units_(heap),
        tiles_(heap),
        counts_(heap) {}

  // Rows past the plan's, up to `rows`, are those of token 0 at position 0, without a record.
  void Begin(const StepPlan& plan, int rows, const Rope& rope);

  // These are of the last Begin: [rows] each, but for `pages`, which is the plan's.
  const int32_t* token_ids = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* record_index = nullptr;  // page·64 + place of each row's record, or −1
  const int32_t* logit_rows = nullptr;
  const int32_t* pages = nullptr;

  // Cosines and sines of the step's rows; an attention says how its pairs lie.
  RopeTables rope(bool interleaved) const { return {cos_, sin_, interleaved}; }

  // One launch of attention: which tiles and units of work it has (mla_decode.h).
  struct Mla {
    const MlaTile* tiles = nullptr;
    const MlaUnit* units = nullptr;
    const int32_t* counts = nullptr;  // [2]
    int tile_count = 0;
    int unit_count = 0;
    int partial_rows = 0;

    // The same arrays, with the counts that no plan of `rows` rows and `heads` heads exceeds.
    Mla ForAnyPlan(int rows, int heads) const;
  };
  // The launches that the step needs with `heads` heads, one after another: more than one only
  // where partial results would not fit. They are made at the first call of a step and valid until
  // Begin.
  std::span<const Mla> MlaFor(const StepPlan& plan, int heads);

 private:
  template <typename T>
  T* Upload(Scratch& to, const std::vector<T>& values);

  DeviceRuntime& runtime_;
  // Each lies by itself, so that the growth of one moves no other.
  Scratch integers_, pages_, angles_, units_, tiles_, counts_;
  RopeTable table_;
  const float* cos_ = nullptr;
  const float* sin_ = nullptr;
  std::vector<Mla> mla_;
  int mla_heads_ = 0;  // 0: not made yet
};

}  // namespace epic::kernels::cuda
