#include "kernels/cuda/pairs.h"

#include "kernels/check.h"
#include "kernels/cuda/pairs_kernel.h"

namespace epic::kernels::cuda {

void PlacePairs(Stream stream, const PlaceArguments& arguments) {
  KERNEL_CHECK(arguments.place != nullptr && arguments.group_rows != nullptr);
  Launch<PlaceKernel>(stream, arguments.groups, arguments);
}

void PackRows(Stream stream, const PackArguments& arguments) {
  KERNEL_CHECK(arguments.codes != nullptr && arguments.packed_codes != nullptr);
  KERNEL_CHECK_EQ(arguments.columns % 16, 0);  // copied by 16 bytes
  // Without a table pair p is of row p / top_k.
  KERNEL_CHECK(arguments.row != nullptr || arguments.top_k > 0);
  Launch<PackKernel>(stream, arguments.pairs, arguments);
}

void CombineRows(Stream stream, const CombineArguments& arguments) {
  KERNEL_CHECK(arguments.residual != nullptr);
  // With top_k 0, as in a dense layer, nothing but the MLP's rows is added.
  KERNEL_CHECK(arguments.top_k == 0 || arguments.weights != nullptr);
  Launch<CombineKernel>(stream, arguments.rows, arguments);
}

}  // namespace epic::kernels::cuda
