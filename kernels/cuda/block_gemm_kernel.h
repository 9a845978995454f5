// The kernel of block_gemm.h. Weights are WGMMA's left operand (64 of N a warpgroup), rows its
// right one, so that few rows waste no tensor core. One warp brings tiles by bulk copies through a
// ring of stages; each warpgroup multiplies 128 of K at a time and adds the scaled block into its
// own FP32 sums. Blocks are persistent and walk the tiles in a fixed order.
#pragma once

#include "kernels/cuda/block_gemm.h"
#include "kernels/cuda/device/device.h"
#include "kernels/tensor.h"

namespace epic::kernels::cuda {

struct BlockGemmParams {
  TensorMap w;        // box 128 of K × the tile's N, where there are no maps of groups
  TensorMap x;        // box 128 of K × the tile's rows
  TensorMap x_scale;  // box the tile's rows × 1
  BlockGemmArguments arguments;
};

struct GemmTile {
  int group = 0;
  int row = 0;      // first, of the group's
  int row_end = 0;  // of the rows that count
  int n = 0;        // first
};

// The tiles of one block, in order. Every thread walks by itself: the walk is a function of the
// arguments alone, so producer and consumers agree without a word.
template <int kRowTile, int kColumnTile>
class GemmTileWalk {
 public:
  EPIC_DEVICE explicit GemmTileWalk(const BlockGemmArguments& a)
      : a_(a), index_(BlockIndex()), column_tiles_((a.n + kColumnTile - 1) / kColumnTile) {}

  EPIC_DEVICE bool Next(GemmTile& tile) {
    while (true) {
      // Segments of no group are passed over, and cost a block nothing but the look.
      const int index = index_;
      index_ += BlockCount();
      if (a_.layout == GemmLayout::kMasked) return NextMasked(index, tile);
      if (index >= Tiles(a_.rows)) return false;
      Place(index, a_.rows, tile);
      if (a_.layout == GemmLayout::kDense) return true;
      tile.group = a_.segment_group[tile.row / kSegmentRows];
      if (tile.group >= 0) return true;
    }
  }

 private:
  // Tiles go down a band of 16 rows of tiles before they go to the next columns, so that blocks
  // that run at once share weights in the L2 cache. Chosen, not measured: nothing here has run on a
  // card.
  static constexpr int kBandTiles = 16;

  EPIC_DEVICE int Tiles(int rows) const { return (rows + kRowTile - 1) / kRowTile * column_tiles_; }

  // Groups are passed over until the one that holds tile `index`: group_ and first_ never go back,
  // as a block's indices only grow.
  EPIC_DEVICE bool NextMasked(int index, GemmTile& tile) {
    for (; group_ < a_.groups; ++group_) {
      const int rows = a_.group_rows == nullptr ? a_.rows : a_.group_rows[group_];
      const int tiles = Tiles(rows);
      if (index - first_ < tiles) {
        Place(index - first_, rows, tile);
        tile.group = group_;
        return true;
      }
      first_ += tiles;
    }
    return false;
  }

  // Tile `index` of `rows` rows: within a band rows run fastest.
  EPIC_DEVICE void Place(int index, int rows, GemmTile& tile) const {
    const int row_tiles = (rows + kRowTile - 1) / kRowTile;
    const int band = index / (kBandTiles * column_tiles_);
    const int in_band = index - band * kBandTiles * column_tiles_;
    const int left = row_tiles - band * kBandTiles;
    const int height = left < kBandTiles ? left : kBandTiles;
    tile.row = (band * kBandTiles + in_band % height) * kRowTile;
    tile.row_end = rows;
    tile.n = in_band / height * kColumnTile;
  }

  const BlockGemmArguments& a_;
  int index_;
  int column_tiles_;
  int group_ = 0;
  int first_ = 0;  // index of group_'s first tile
};

template <GemmType kType, int kRowTile, int kWarpgroups, int kStageCount, int kBlocks>
struct BlockGemmKernel {
  using Params = BlockGemmParams;
  using Walk = GemmTileWalk<kRowTile, kWarpgroups * kWarpgroupRows>;
  struct alignas(8) ScalePair {
    float first, second;
  };

  static constexpr int kRows = kRowTile;
  static constexpr int kColumnTile = kWarpgroups * kWarpgroupRows;
  static constexpr bool kScaled = kType == GemmType::kE4M3;
  static constexpr int kBlockK = kTileRowBytes / (kScaled ? 1 : 2);  // of a stage
  static constexpr int kProductBytes = 32;                           // of K in one product
  static constexpr int kThreads = kWarpgroups * 128 + 32;            // and the producer's warp
  static constexpr int kBlocksPerSm = kBlocks;

  // Shared memory: per stage the tile of w, then that of x; per stage the scales; the barriers.
  static constexpr int kWBytes = kColumnTile * kTileRowBytes;
  static constexpr int kXBytes = kRowTile * kTileRowBytes;
  static constexpr int kScaleBytes = kScaled ? kRowTile * 4 : 0;
  // 128 bytes is the alignment of a copy's target without swizzle.
  static constexpr int kScaleStride = (kScaleBytes + 127) / 128 * 128;
  static constexpr int kScaleOffset = kStageCount * (kWBytes + kXBytes);
  static constexpr int kBarrierOffset = kScaleOffset + kStageCount * kScaleStride;
  static constexpr int kSharedBytes = kBarrierOffset + 2 * kStageCount * 8;
  // Every stage's tiles then begin where the swizzle's pattern does.
  static_assert(kXBytes % kTileAlignmentBytes == 0);

  // A place in the ring of stages, and the parity of its barriers' phase. Producer and consumers
  // count alike: both visit the same tiles in the same order.
  struct Stage {
    int index = 0;
    uint32_t phase = 0;
    EPIC_DEVICE void Advance() {
      if (++index == kStageCount) {
        index = 0;
        phase ^= 1;
      }
    }
    EPIC_DEVICE Shared<uint64_t> full() const {
      return SharedAt<uint64_t>(kBarrierOffset + index * 8, 1);
    }
    EPIC_DEVICE Shared<uint64_t> empty() const {
      return SharedAt<uint64_t>(kBarrierOffset + (kStageCount + index) * 8, 1);
    }
    EPIC_DEVICE uint32_t w() const {
      return SharedAt<uint8_t>(index * (kWBytes + kXBytes), kWBytes).address();
    }
    EPIC_DEVICE uint32_t x() const {
      return SharedAt<uint8_t>(index * (kWBytes + kXBytes) + kWBytes, kXBytes).address();
    }
    EPIC_DEVICE Shared<ScalePair> scales() const {
      return SharedAt<ScalePair>(kScaleOffset + index * kScaleStride, kRowTile / 2);
    }
  };

  EPIC_DEVICE static void Run(const Params& params) {
    if (ThreadIndex() == 0) {
      for (Stage stage; stage.phase == 0; stage.Advance()) {
        // Full counts the producer's one arrival and the bytes that it announces with it; empty
        // counts one arrival of each consuming warp.
        InitBarrier(stage.full(), 1);
        InitBarrier(stage.empty(), kWarpgroups * 4);
      }
      FenceBarrierInit();
    }
    // No thread may touch a barrier before all are made.
    SyncBlock();
    // The role is a whole warp's. Of the producer's warp one lane works, and the others are done.
    if (Uniform(WarpIndex()) == kWarpgroups * 4) {
      if (LaneIndex() == 0) Produce(params);
    } else {
      Consume(params.arguments);
    }
  }

  EPIC_DEVICE static int BlocksOfK(const BlockGemmArguments& a) {
    return (a.k + kBlockK - 1) / kBlockK;
  }

  // One thread: a bulk copy takes one. A barrier is in phase 0 at first, and waiting for the phase
  // before it returns at once, so the first round finds the stages empty.
  EPIC_DEVICE static void Produce(const Params& params) {
    const int k_blocks = BlocksOfK(params.arguments);
    const bool masked = params.arguments.layout == GemmLayout::kMasked;
    Stage stage;
    Walk walk(params.arguments);
    GemmTile tile;
    while (walk.Next(tile)) {
      const int x_group = masked ? tile.group : 0;
      const TensorMap* maps = params.arguments.w_maps;
      const TensorMap& w = maps == nullptr ? params.w : maps[tile.group];
      // A map of its own knows one group alone.
      const int w_group = maps == nullptr ? tile.group : 0;
      // The host wrote the map to global memory, where the copy engine has a cache of its own.
      if (maps != nullptr) AcquireTensorMap(w);
      for (int b = 0; b < k_blocks; ++b, stage.Advance()) {
        WaitForPhase(stage.empty(), stage.phase ^ 1);
        // Whole boxes are announced, since the copy engine fills up what lies outside of the
        // matrices and counts it too.
        ArriveAndExpect(stage.full(), kWBytes + kXBytes + kScaleBytes);
        CopyTile(w, stage.w(), stage.full(), b * kBlockK, tile.n, w_group);
        CopyTile(params.x, stage.x(), stage.full(), b * kBlockK, tile.row, x_group);
        if constexpr (kScaled) {
          CopyTile(params.x_scale, stage.scales().address(), stage.full(), tile.row, b, x_group);
        }
      }
    }
  }

  // The scales of the tile's outputs, one per block of K. A column tile never crosses a block of
  // 128 outputs, so one scale serves all of them.
  EPIC_DEVICE static const float* WeightScales(const BlockGemmArguments& a, const GemmTile& tile) {
    if (!kScaled) return nullptr;
    const int k_blocks = BlocksOfK(a);
    const int n_blocks = (a.n + kScaleBlock - 1) / kScaleBlock;
    const float* of_group = a.w_maps == nullptr
                                ? a.w_scale + int64_t{tile.group} * n_blocks * k_blocks
                                : a.w_scales[tile.group];
    return of_group + tile.n / kScaleBlock * k_blocks;
  }

  EPIC_DEVICE static void Consume(const BlockGemmArguments& a) {
    const int k_blocks = BlocksOfK(a);
    Stage stage;
    Walk walk(a);
    GemmTile tile;
    while (walk.Next(tile)) {
      const float* w_scale = WeightScales(a, tile);
      // A warpgroup's 128 threads share 64 outputs by kRowTile rows.
      float sums[kRowTile / 2];
      EPIC_UNROLL
      for (int i = 0; i < kRowTile / 2; ++i) sums[i] = 0;
      for (int b = 0; b < k_blocks; ++b, stage.Advance()) {
        // The scale is read before the wait, so that the load is on its way meanwhile.
        const float scale = kScaled ? w_scale[b] : 1.0f;
        WaitForPhase(stage.full(), stage.phase);
        if constexpr (kScaled) {
          AddScaledBlock(stage, scale, sums);
        } else {
          AddBlock(stage, b == 0, sums);
        }
        // Products are awaited, so the stage may be filled again.
        // One lane arrives for its warp, so all lanes must have read the scales before.
        SyncWarp();
        if (LaneIndex() == 0) Arrive(stage.empty());
      }
      Write(a, tile, sums);
    }
  }

  // BF16: the tensor core keeps the sum over all of K.
  EPIC_DEVICE static void AddBlock(const Stage& stage, bool first, float (&sums)[kRowTile / 2]) {
    const uint32_t w = stage.w() + Uniform(WarpgroupIndex()) * kWarpgroupRows * kTileRowBytes;
    const uint32_t x = stage.x();
    ProductsBegin();
    EPIC_UNROLL
    for (int k = 0; k < kTileRowBytes; k += kProductBytes) {
      MultiplyBF16<kRowTile>(sums, RowsDescriptor(w + k), RowsDescriptor(x + k), !first || k > 0);
    }
    ProductsCommit();
    ProductsWait<0>(sums);
  }

  // FP8: a block of 128 of K by the tensor core, then one multiply-add in FP32, so that the order
  // of sums is ours and its precision too. An accumulator's columns are rows of x: four lanes share
  // the scales of eight rows.
  EPIC_DEVICE static void AddScaledBlock(const Stage& stage, float w_scale,
                                         float (&sums)[kRowTile / 2]) {
    const uint32_t w = stage.w() + Uniform(WarpgroupIndex()) * kWarpgroupRows * kTileRowBytes;
    const uint32_t x = stage.x();
    float block[kRowTile / 2];
    ProductsBegin();
    EPIC_UNROLL
    for (int k = 0; k < kTileRowBytes; k += kProductBytes) {
      // The first product overwrites `block`: a block's sum starts from 0.
      MultiplyE4M3<kRowTile>(block, RowsDescriptor(w + k), RowsDescriptor(x + k), k > 0);
    }
    ProductsCommit();
    // Nothing reads `block` before the wait: WGMMA owns its registers until then.
    const Shared<ScalePair> scales = stage.scales();
    ProductsWait<0>(block);
    EPIC_UNROLL
    for (int i = 0; i < kRowTile / 2; i += 4) {
      const ScalePair pair = scales.Load(i + LaneIndex() % 4);
      // The product of both scales is rounded first, as the stated order has it; it is one FMA
      // then.
      const float first = pair.first * w_scale;
      const float second = pair.second * w_scale;
      sums[i] = Fma(block[i], first, sums[i]);
      sums[i + 1] = Fma(block[i + 1], second, sums[i + 1]);
      sums[i + 2] = Fma(block[i + 2], first, sums[i + 2]);
      sums[i + 3] = Fma(block[i + 3], second, sums[i + 3]);
    }
  }

  EPIC_DEVICE static void Write(const BlockGemmArguments& a, const GemmTile& tile,
                                const float (&sums)[kRowTile / 2]) {
    switch (a.output) {
      case GemmOutput::kF32:
        return WriteAs(a, tile, sums,
                       [&](int64_t at, float sum) { static_cast<float*>(a.out)[at] = sum; });
      case GemmOutput::kBF16:
        return WriteAs(a, tile, sums,
                       [&](int64_t at, float sum) { static_cast<BF16*>(a.out)[at] = ToBF16(sum); });
      case GemmOutput::kAddF32:
        return WriteAs(a, tile, sums,
                       [&](int64_t at, float sum) { static_cast<float*>(a.out)[at] += sum; });
    }
  }

  // Weights are the left operand, so an accumulator's column is a row of the result.
  template <typename Store>
  EPIC_DEVICE static void WriteAs(const BlockGemmArguments& a, const GemmTile& tile,
                                  const float (&sums)[kRowTile / 2], const Store& store) {
    const int thread = ThreadIndex() % 128;
    const int64_t row_stride = a.out_row_stride == 0 ? a.n : a.out_row_stride;
    const int64_t group_stride = a.out_group_stride == 0 ? a.rows * row_stride : a.out_group_stride;
    const int64_t first = a.layout == GemmLayout::kMasked ? tile.group * group_stride : 0;
    const int first_n = tile.n + WarpgroupIndex() * kWarpgroupRows;
    EPIC_UNROLL
    for (int i = 0; i < kRowTile / 2; ++i) {
      const int row = tile.row + AccumulatorColumn(thread, i);
      const int n = first_n + AccumulatorRow(thread, i);
      // Columns past the matrix and places that no row took were multiplied like the rest; they are
      // never written.
      if (row < tile.row_end && n < a.n) store(first + row * row_stride + n, sums[i]);
    }
  }
};

// Variants by rows of a tile: <type, rows, warpgroups, stages, blocks of a multiprocessor>. Small
// tiles wait for copies more than for products, so two blocks run side by side. Their stages fit
// the shared memory (test/budget_test.cc). Chosen, not measured: nothing here has run on a card.
template <GemmType kType>
using BlockGemm16 = BlockGemmKernel<kType, 16, 1, 8, 2>;
template <GemmType kType>
using BlockGemm32 = BlockGemmKernel<kType, 32, 1, 8, 2>;
template <GemmType kType>
using BlockGemm64 = BlockGemmKernel<kType, 64, 2, 4, 2>;
template <GemmType kType>
using BlockGemm128 = BlockGemmKernel<kType, 128, 2, 6, 1>;

}  // namespace epic::kernels::cuda
