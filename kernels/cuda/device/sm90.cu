#include <cudaTypedefs.h>

#include <cstdio>
#include <cstdlib>

#include "kernels/cuda/device/launch.h"

namespace epic::kernels::cuda {
namespace {

[[noreturn]] void Die(const char* what, const char* why) {
  std::fprintf(stderr, "CUDA: %s: %s\n", what, why);
  std::abort();
}

// By name from the driver that is there, so that nothing links against it.
PFN_cuTensorMapEncodeTiled_v12000 Encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  CheckCuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                             cudaEnableDefault, &result),
            "cudaGetDriverEntryPointByVersion");
  if (function == nullptr) Die("cuTensorMapEncodeTiled", "the driver lacks it");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

CUtensorMapDataType DataType(int element_bytes) {
  if (element_bytes == 1) return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  return element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

}  // namespace

void CheckCuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) Die(what, cudaGetErrorString(status));
}

TensorMap MakeTensorMap(const TileShape& shape) {
  if (const char* problem = TileProblem(shape)) Die("MakeTensorMap", problem);
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
  const CUresult result =
      encode(&map, DataType(shape.element_bytes), kTileDims, const_cast<void*>(shape.data), extents,
             strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
             shape.swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) Die("cuTensorMapEncodeTiled", "the driver refuses the shape");
  return map;
}

}  // namespace epic::kernels::cuda
