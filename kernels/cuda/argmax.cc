#include "kernels/cuda/argmax.h"

#include "kernels/cuda/argmax_kernel.h"

namespace epic::kernels::cuda {

void Argmax(Stream stream, const ArgmaxArguments& arguments) {
  Launch<ArgmaxKernel>(stream, arguments.rows, arguments);
}

}  // namespace epic::kernels::cuda
