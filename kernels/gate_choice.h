// The router's choice from its logits: softmax greedy and group_limited_greedy of DeepSeek-V2,
// noaux_tc of DeepSeek-V3 (docs: reference of the model family). Plain FP32 in ascending order of
// expert, so every backend takes it as it is.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"

namespace epic::kernels {

class GateChooser {
 public:
  // `correction_bias` [experts] or empty; copied.
  GateChooser(const GateShape& shape, std::span<const float> correction_bias);

  // logits [experts] → ids [top_k] ascending and their weights. Ties go to the lowest id. Returns
  // false if a score is NaN: then ids are 0 .. top_k−1 and weights 0. Thread-safe.
  bool Choose(const float* logits, int32_t* ids, float* weights) const;

 private:
  void Score(const float* logits, float* scores) const;
  void KeepBestGroups(float* choice) const;

  GateShape shape_;
  std::vector<float> bias_;
};

}  // namespace epic::kernels
