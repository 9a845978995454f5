// NCCL itself, in a build with EPIC_CUDA.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "cluster/transport/nccl/nccl_api.h"

namespace epic::cluster {

// On card `card` of those that CUDA_VISIBLE_DEVICES leaves, with libnccl.so.2 of the system, else
// of the toolkit that this was built with. Unavailable, saying why, without the card or a libnccl
// that is as new as its header was.
absl::StatusOr<std::unique_ptr<NcclApi>> OpenCudaNccl(int card);

}  // namespace epic::cluster
