#include "kernels/cuda/argmax.h"

#include "kernels/check.h"
#include "kernels/cuda/argmax_kernel.h"

namespace epic::kernels::cuda {

void Argmax(Stream stream, const ArgmaxArguments& arguments) {
  // Rows in memory may be wider than the vocabulary: an id past `limit` must never be sampled.
  KERNEL_CHECK(arguments.limit > 0 && arguments.limit <= arguments.columns, "%d of %d",
               arguments.limit, arguments.columns);
  Launch<ArgmaxKernel>(stream, arguments.rows, arguments);
}

}  // namespace epic::kernels::cuda
