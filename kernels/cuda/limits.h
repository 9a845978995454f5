// Limits of the kernels that a model's shape must keep, and of the scratch memory of a step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

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

// Rows of small steps, the tiles of block_gemm.h: what a bucket pads, a tile would.
inline constexpr int kRowBuckets[] = {16, 32, 64, 128, 256};
inline constexpr int kBucketRowsMax = 256;
// The smallest bucket that holds so many; beyond all: `rows`.
inline int BucketOf(int rows) {
  const auto* bucket = std::ranges::lower_bound(kRowBuckets, rows);
  return bucket == std::end(kRowBuckets) ? rows : *bucket;
}

// Of the graphs of all buckets: some kilobytes for each of their launches.
inline constexpr int64_t kGraphBytes = int64_t{256} << 20;

}  // namespace epic::kernels::cuda
