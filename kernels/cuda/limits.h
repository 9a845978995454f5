// Limits of the kernels that a model's shape must keep, and of the scratch memory of a step.
#pragma once

namespace epic::kernels::cuda {

inline constexpr int kGateExpertsMax = 512;
inline constexpr int kGateGroupsMax = 32;
inline constexpr int kGateTopKMax = 32;

inline constexpr int kMlaRopeDim = 64;
inline constexpr int kMlaLatentDims[] = {128, 512};

// Rows of one launch: of experts' products, but those of one expert at least, and of the partial
// results of attention.
inline constexpr int kBatchPlacesMax = 8192;
inline constexpr int kPartialRowsMax = 1 << 16;

}  // namespace epic::kernels::cuda
