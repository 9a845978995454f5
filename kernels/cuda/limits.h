// Limits of the kernels that a model's shape must keep, and of the scratch memory of a step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

namespace epic::kernels::cuda {

// A lane of the gate's warp holds 16 experts, one group and one choice (gate_kernel.h).
inline constexpr int kGateExpertsMax = 512;
inline constexpr int kGateGroupsMax = 32;
inline constexpr int kGateTopKMax = 32;

// The attention kernels are compiled for these sizes.
inline constexpr int kMlaRopeDim = 64;
inline constexpr int kMlaLatentDims[] = {128, 512};

// Most rows of one launch of experts' products (one expert is always one launch), and most rows of
// partial results of one launch of attention. Chosen: they bound the scratch memory.
inline constexpr int kBatchPlacesMax = 8192;
inline constexpr int kPartialRowsMax = 1 << 16;

// Small steps are filled up to these numbers of rows, the tiles of block_gemm.h: a bucket pads no
// more than a tile would.
inline constexpr int kRowBuckets[] = {16, 32, 64, 128, 256};
inline constexpr int kBucketRowsMax = 256;
// The smallest bucket that holds `rows`; beyond all of them `rows` itself.
inline int BucketOf(int rows) {
  const auto* bucket = std::ranges::lower_bound(kRowBuckets, rows);
  return bucket == std::end(kRowBuckets) ? rows : *bucket;
}

// Memory that the graphs of all buckets take: some kilobytes for each of their launches. Chosen.
inline constexpr int64_t kGraphBytes = int64_t{256} << 20;

}  // namespace epic::kernels::cuda
