// NCCL itself, in a build with EPIC_CUDA.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "cluster/transport/nccl/nccl_api.h"

namespace epic::cluster {

// Opens NCCL on card `card` of those that CUDA_VISIBLE_DEVICES leaves, with libnccl.so.2 of the
// system, else of the toolkit that this was built with. Returns Unavailable, and says why, if there
// is no such card, or no libnccl that is as new as the header of the build.
absl::StatusOr<std::unique_ptr<NcclApi>> OpenCudaNccl(int card);

}  // namespace epic::cluster
