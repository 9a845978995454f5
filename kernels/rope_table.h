// Cosines and sines of a step's rows, computed in double and rounded once to FP32: an angle of a
// position near a million would lose all its digits in FP32. Made once a step, for all layers.
#pragma once

#include <vector>

#include "kernels/backend.h"
#include "kernels/step_plan.h"

namespace epic::kernels {

struct RopeTable {
  int pairs = 0;           // rope_dim / 2
  std::vector<float> cos;  // [rows, pairs], times the magnitude
  std::vector<float> sin;

  // A row for each of the plan's; what the table held is replaced.
  void Fill(const StepPlan& plan, const Rope& rope);
};

}  // namespace epic::kernels
