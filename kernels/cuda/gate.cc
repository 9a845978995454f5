#include "kernels/cuda/gate.h"

#include "kernels/cuda/gate_kernel.h"

namespace epic::kernels::cuda {

void ChooseExperts(Stream stream, const GateArguments& arguments) {
  const int blocks = (arguments.rows + GateKernel::kWarps - 1) / GateKernel::kWarps;
  Launch<GateKernel>(stream, blocks, arguments);
}

}  // namespace epic::kernels::cuda
