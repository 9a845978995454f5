#include "kernels/cuda/backend.h"

#include <string>
#include <utility>

#include "kernels/cuda/cuda_backend.h"

namespace epic::kernels {

CudaBackendResult MakeCudaBackend(const CudaOptions& options) {
  std::string error;
  auto runtime = cuda::DeviceRuntime::Open(options.ordinal, error);
  // The reason goes to the user: a missing card is no fault of the program.
  if (runtime == nullptr) return {.error = std::move(error)};
  return cuda::MakeBackendOn(std::move(runtime), options, cuda::BlockGemm);
}

}  // namespace epic::kernels
