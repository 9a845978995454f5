#include "kernels/rope_table.h"

#include "kernels/math.h"

namespace epic::kernels {

void RopeTable::Fill(const StepPlan& plan, const Rope& rope) {
  pairs = static_cast<int>(rope.inverse_frequency.size());
  cos.resize(plan.positions.size() * pairs);
  sin.resize(cos.size());
  size_t at = 0;
  for (const int32_t position : plan.positions) {
    for (const double frequency : rope.inverse_frequency) {
      // The angle is made in double, since FP32 would lose its fraction at large positions. The
      // magnitude (YaRN's) joins before the one rounding to FP32.
      const SinCos value = SinCosDouble(position * frequency);
      cos[at] = static_cast<float>(value.cos * rope.magnitude);
      sin[at] = static_cast<float>(value.sin * rope.magnitude);
      ++at;
    }
  }
}

}  // namespace epic::kernels
