// FP8 records on their way to the products of MlaSplitKernel: code · scale, rounded to BF16, which
// is exact since scales are powers of two (kernels/kv_record.h).
#pragma once

#include "kernels/cuda/mla_split_layout.h"

namespace epic::kernels::cuda {

template <int kLatent>
struct MlaFp8Records {
  using Layout = MlaSplitLayout<kLatent, KvType::kFP8>;

  struct alignas(16) Chunk {
    uint32_t words[4];
  };

  // Where 16 bytes of a row lie in the decoded tile, in chunks; `byte` counts from the row's start,
  // latent and then rope, two bytes a value.
  EPIC_DEVICE static int DecodedChunk(int row, int byte) {
    const uint32_t in_chunk = row * kTileRowBytes + byte % kTileRowBytes;
    return static_cast<int>(byte / kTileRowBytes * Layout::kChunkBytes + Swizzled(in_chunk)) / 16;
  }

  // Writes the records at `at` as BF16 to the decoded tile, and zeros from the `records`-th on,
  // which no product may meet. All consumers call it.
  EPIC_DEVICE static void Decode(int at, int records) {
    const auto codes = SharedAt<Chunk>(at, Layout::kCodeBytes / 16);
    const auto ends = SharedAt<Chunk>(at + Layout::kCodeBytes, 64 * Layout::kEndBytes / 16);
    const auto scales = SharedAt<float>(at + Layout::kCodeBytes, 64 * Layout::kEndBytes / 4);
    const auto tile = SharedAt<Chunk>(Layout::kDecodedOffset, Layout::kTileBytes / 16);
    constexpr int kRowChunks = kLatent / 16;
    for (int i = ThreadIndex(); i < Layout::kKeys * kRowChunks; i += Layout::kConsumers) {
      const int row = i / kRowChunks;
      const int column = i % kRowChunks * 16;
      const int box = column / Layout::kCodeBox;
      // 16 codes of a byte become 16 values of two bytes: two chunks.
      Chunk decoded[2] = {};
      if (row < records) {
        const Chunk chunk = codes.Load(
            (box * 64 * Layout::kCodeBox + row * Layout::kCodeBox + column % Layout::kCodeBox) /
            16);
        // 16 codes never cross a block of 128, so one scale serves them.
        const float scale = scales.Load(row * Layout::kEndBytes / 4 + column / kKvScaleBlock);
        EPIC_UNROLL
        for (int j = 0; j < 8; ++j) {
          const FloatPair pair =
              FromE4M3Pair(static_cast<uint16_t>(chunk.words[j / 2] >> (j % 2 * 16)));
          decoded[j / 4].words[j % 4] = ToBF16Pair(pair.low * scale, pair.high * scale);
        }
      }
      tile.Store(DecodedChunk(row, column * 2), decoded[0]);
      tile.Store(DecodedChunk(row, column * 2 + 16), decoded[1]);
    }
    // The rope part is BF16 already and only changes its place: behind the latent, swizzled.
    constexpr int kRopeChunks = kMlaRopeDim * 2 / 16;
    for (int i = ThreadIndex(); i < Layout::kKeys * kRopeChunks; i += Layout::kConsumers) {
      const int row = i / kRopeChunks;
      const int chunk = i % kRopeChunks;
      constexpr int kFirst = Layout::kRopeOffset / 16;
      const Chunk rope =
          row < records ? ends.Load(row * Layout::kEndBytes / 16 + kFirst + chunk) : Chunk{};
      tile.Store(DecodedChunk(row, kLatent * 2 + chunk * 16), rope);
    }
  }
};

}  // namespace epic::kernels::cuda
