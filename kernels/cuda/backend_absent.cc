// In a build without CUDA.
#include "kernels/cuda/backend.h"

namespace epic::kernels {

CudaBackendResult MakeCudaBackend(const CudaOptions& options) {
  return {.error = "this program was built without CUDA (EPIC_CUDA=ON builds it)"};
}

}  // namespace epic::kernels
