#include <cudaTypedefs.h>

#include "kernels/check.h"
#include "kernels/cuda/device/launch.h"

namespace epic::kernels::cuda {
namespace {

// By name from the driver that is there, so that nothing links against it.
PFN_cuTensorMapEncodeTiled_v12000 Encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  CheckCuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                             cudaEnableDefault, &result),
            "cudaGetDriverEntryPointByVersion");
  KERNEL_CHECK(function != nullptr, "the driver lacks cuTensorMapEncodeTiled");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

CUtensorMapDataType DataType(int element_bytes) {
  // The engine moves bits and converts nothing, so the width alone counts: UINT8 serves E4M3.
  if (element_bytes == 1) return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  return element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

}  // namespace

void CheckCuda(cudaError_t status, const char* what) {
  KERNEL_CHECK(status == cudaSuccess, "CUDA: %s: %s", what, cudaGetErrorString(status));
}

TensorMap MakeTensorMap(const TileShape& shape) {
  const char* problem = TileProblem(shape);
  KERNEL_CHECK(problem == nullptr, "%s", problem);
  static const auto encode = Encoder();
  cuuint64_t extents[kTileDims];
  cuuint64_t strides[kTileDims - 1];
  cuuint32_t box[kTileDims];
  const cuuint32_t element_strides[kTileDims] = {1, 1, 1};
  for (int i = 0; i < kTileDims; ++i) {
    extents[i] = static_cast<cuuint64_t>(shape.extent[i]);
    box[i] = static_cast<cuuint32_t>(shape.box[i]);
    if (i > 0) strides[i - 1] = static_cast<cuuint64_t>(shape.stride_bytes[i - 1]);
  }
  TensorMap map;
  // Places outside of the tensor become zeros, which add nothing to a product. Promotion to 256
  // bytes in L2 is chosen, not measured.
  const CUresult result =
      encode(&map, DataType(shape.element_bytes), kTileDims, const_cast<void*>(shape.data), extents,
             strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
             shape.swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  KERNEL_CHECK(result == CUDA_SUCCESS, "the driver refuses the shape: %d",
               static_cast<int>(result));
  return map;
}

}  // namespace epic::kernels::cuda
