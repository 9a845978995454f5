#include "kernels/cuda/pairs.h"

#include "kernels/cuda/pairs_kernel.h"

namespace epic::kernels::cuda {

void PlacePairs(Stream stream, const PlaceArguments& arguments) {
  Launch<PlaceKernel>(stream, arguments.groups, arguments);
}

void PackRows(Stream stream, const PackArguments& arguments) {
  Launch<PackKernel>(stream, arguments.pairs, arguments);
}

void CombineRows(Stream stream, const CombineArguments& arguments) {
  Launch<CombineKernel>(stream, arguments.rows, arguments);
}

}  // namespace epic::kernels::cuda
