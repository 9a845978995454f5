// The places of MlaSplitKernel's data in a block's shared memory, and the barriers by which its
// producer and its consumers hand tiles to each other.
//
//   [queries | stages of records | decoded records (FP8) | weights | maxima | sums | barriers]
//
// A tile is 64 rows of latent and rope in BF16, in chunks of 64 rows × 64 columns, swizzled by 128
// bytes as bulk copies write them and products read them (PTX ISA, "Shared memory matrix layout").
// The sizes fit the 227 KiB of a block (test/budget_test.cc): that is why FP8 has one stage only.
#pragma once

#include "kernels/cuda/device/device.h"
#include "kernels/cuda/mla_decode.h"

namespace epic::kernels::cuda {

inline constexpr int kMlaCodeBoxBytes = 256;  // of an FP8 record: the widest box of a bulk copy

template <int kLatent, KvType kType>
struct MlaSplitLayout {
  static constexpr int kConsumers = 256;  // threads of the two warpgroups that compute
  // A block of keys is a page, so that one look at the page table finds all of them.
  static constexpr int kKeys = kPageTokens;
  static constexpr int kWarpgroupKeys = kKeys / 2;
  static constexpr int kColumns = kLatent / 2;  // of the output, per warpgroup
  // FP8 records arrive in one stage and are decoded into another, from which they are multiplied;
  // BF16 ones are multiplied where they arrive.
  static constexpr bool kDecoded = kType == KvType::kFP8;
  static constexpr int kStages = kDecoded ? 1 : 2;

  // Shared memory: chunks of 64 rows × 64 columns of BF16.
  static constexpr int kChunkBytes = 64 * kTileRowBytes;
  static constexpr int kChunks = (kLatent + kMlaRopeDim) / 64;
  static constexpr int kTileBytes = kChunks * kChunkBytes;
  static constexpr int kStageOffset = kTileBytes;  // the queries lie first
  static constexpr int kCodeBox = kLatent < kMlaCodeBoxBytes ? kLatent : kMlaCodeBoxBytes;
  static constexpr KvLayout kLayout = MlaLayout(kType, kLatent);
  static constexpr int kRopeOffset =
      static_cast<int>(kLayout.rope_offset_bytes() - kLayout.scales_offset_bytes());
  static constexpr int kEndBytes =  // of a record: scales and rope
      static_cast<int>(kLayout.record_bytes() - kLayout.scales_offset_bytes());
  static constexpr int kCodeBytes = 64 * kLatent;
  static constexpr int kStageBytes = 64 * static_cast<int>(kLayout.record_bytes());
  // Tiles that products read begin at multiples of 1 KiB, as the swizzle wants it.
  static constexpr int kDecodedOffset = kStageOffset + (kStages * kStageBytes + 1023) / 1024 * 1024;
  static constexpr int kWeightOffset = kDecodedOffset + (kDecoded ? kTileBytes : 0);
  static constexpr int kMaximumOffset = kWeightOffset + kChunkBytes;
  static constexpr int kSumOffset = kMaximumOffset + 2 * 64 * 4;
  static constexpr int kBarrierOffset = kSumOffset + 2 * 64 * 4;
  static constexpr int kSharedBytes = kBarrierOffset + (2 + 2 * kStages) * 8;

  // Named barriers of the 256 consumers; 0 is SyncBlock's.
  static constexpr int kExchangeBarrier = 1;
  static constexpr int kWeightBarrier = 2;
  static constexpr int kTailBarrier = 3;

  EPIC_DEVICE static Shared<uint64_t> Barrier(int index) {
    return SharedAt<uint64_t>(kBarrierOffset + index * 8, 1);
  }
  EPIC_DEVICE static Shared<uint64_t> QueryFull() { return Barrier(0); }
  EPIC_DEVICE static Shared<uint64_t> QueryEmpty() { return Barrier(1); }
  EPIC_DEVICE static Shared<uint64_t> Full(int stage) { return Barrier(2 + stage); }
  EPIC_DEVICE static Shared<uint64_t> Empty(int stage) { return Barrier(2 + kStages + stage); }
  EPIC_DEVICE static uint32_t Address(int offset, int bytes) {
    return SharedAt<uint8_t>(offset, bytes).address();
  }
};

}  // namespace epic::kernels::cuda
