#include "kernels/cuda/gate.h"

#include "kernels/check.h"
#include "kernels/cuda/gate_kernel.h"

namespace epic::kernels::cuda {

void ChooseExperts(Stream stream, const GateArguments& arguments) {
  const GateShape& shape = arguments.shape;
  // The kernel keeps a fixed number of experts per lane, one group per lane and one choice per
  // lane: beyond the limits it would leave out experts or run past its arrays.
  KERNEL_CHECK(shape.experts > 0 && shape.experts <= kGateExpertsMax, "%d experts", shape.experts);
  KERNEL_CHECK(shape.top_k > 0 && shape.top_k <= kGateTopKMax, "top_k %d", shape.top_k);
  KERNEL_CHECK(shape.groups > 0 && shape.groups <= kGateGroupsMax, "%d groups", shape.groups);
  // Groups are runs of equal length; a remainder would belong to none.
  KERNEL_CHECK_EQ(shape.experts % shape.groups, 0);
  KERNEL_CHECK(arguments.logits != nullptr);
  const int blocks = (arguments.rows + GateKernel::kWarps - 1) / GateKernel::kWarps;
  Launch<GateKernel>(stream, blocks, arguments);
}

}  // namespace epic::kernels::cuda
