// The splits of mla_decode.h; their merge is mla_merge_kernel.h. A tile of 64 queries stays in
// shared memory; a warp brings the records of 64 keys at a time by bulk copies, into one of two
// stages. Two warpgroups each score half of the keys (64×32), exchange their maxima, share the
// weights through shared memory and multiply all of them with their own half of the latent's
// columns: keys and values are the same bytes, once K-major, once transposed.
#pragma once

#include "kernels/cuda/device/device.h"
#include "kernels/cuda/mla_decode.h"
#include "kernels/cuda/mla_fp8_records.h"
#include "kernels/cuda/mla_softmax.h"
#include "kernels/cuda/mla_split_layout.h"

namespace epic::kernels::cuda {

struct MlaParams {
  TensorMap query;    // [rows·heads, latent + rope], box 64 × 64
  TensorMap records;  // [pages·64, latent + rope], box 64 × 64; FP8: box 64 × up to 256 codes
  TensorMap record_ends;  // FP8: scales and rope, box 64 × all of them
  MlaArguments arguments;
};

// A block walks over units (a split of a tile each): units BlockIndex(), BlockIndex() +
// BlockCount() and so on. Producer and consumers walk over the same units in the same order, so
// they count turns and stages alike and need no other word about which tile a barrier is for.
template <int kLatent, KvType kType>
struct MlaSplitKernel {
  using Params = MlaParams;
  using Layout = MlaSplitLayout<kLatent, kType>;
  static constexpr int kConsumers = Layout::kConsumers;
  static constexpr int kThreads = kConsumers + 128;
  static constexpr int kBlocksPerSm = 1;
  static constexpr int kSharedBytes = Layout::kSharedBytes;
  static constexpr int kKeys = Layout::kKeys;
  static constexpr int kWarpgroupKeys = Layout::kWarpgroupKeys;
  static constexpr int kColumns = Layout::kColumns;

  // Registers that a thread keeps once the roles are known. The file of 64 Ki registers is shared
  // out by warpgroups: 24 is the least that setmaxnreg allows, and what the producer leaves lets a
  // consumer hold its half of the output (kColumns / 2 floats) without spills.
  static constexpr int kProducerRegisters = 24;
  static constexpr int kConsumerRegisters = 240;
  static_assert(128 * kProducerRegisters + kConsumers * kConsumerRegisters <= 64 * 1024);

  EPIC_DEVICE static void Run(const Params& params) {
    if (ThreadIndex() == 0) {
      InitBarrier(Layout::QueryFull(), 1);
      InitBarrier(Layout::QueryEmpty(), kConsumers / 32);
      for (int stage = 0; stage < Layout::kStages; ++stage) {
        InitBarrier(Layout::Full(stage), 1);
        InitBarrier(Layout::Empty(stage), kConsumers / 32);
      }
      FenceBarrierInit();
    }
    SyncBlock();
    // setmaxnreg counts whole warpgroups, so the producer has one though one thread of it works.
    if (Uniform(WarpgroupIndex()) == 2) {
      ReleaseRegisters<kProducerRegisters>();
      if (ThreadIndex() == kConsumers) Produce(params);
    } else {
      ClaimRegisters<kConsumerRegisters>();
      Consume(params.arguments);
    }
  }

  // One thread: a bulk copy takes one. An mbarrier is in phase 0 at first, and waiting for the
  // phase before it returns at once: so the first round finds queries and stages empty.
  EPIC_DEVICE static void Produce(const Params& params) {
    const MlaArguments& a = params.arguments;
    int block = 0;
    int turn = 0;
    const int units = a.counts == nullptr ? a.unit_count : a.counts[1];
    for (int u = BlockIndex(); u < units; u += BlockCount(), ++turn) {
      const MlaUnit unit = a.units[u];
      // The tile's queries stand in one place: they may come once all warps are done with the last
      // ones.
      WaitForPhase(Layout::QueryEmpty(), (turn & 1) ^ 1);
      ArriveAndExpect(Layout::QueryFull(), Layout::kTileBytes);
      for (int c = 0; c < Layout::kChunks; ++c) {
        CopyTile(params.query, Layout::Address(c * Layout::kChunkBytes, Layout::kChunkBytes),
                 Layout::QueryFull(), c * 64, unit.query, 0);
      }
      for (int key = unit.key_begin; key < unit.key_end; key += kKeys, ++block) {
        const int stage = block % Layout::kStages;
        // A block of 64 keys is a page of the cache, so each has one entry of the page table.
        const int page = a.pages[unit.first_page + key / kKeys];
        WaitForPhase(Layout::Empty(stage), (block / Layout::kStages & 1) ^ 1);
        ArriveAndExpect(Layout::Full(stage), Layout::kStageBytes);
        CopyRecords(params, Layout::kStageOffset + stage * Layout::kStageBytes, stage,
                    page * kKeys);
      }
    }
  }

  // The 64 records from `record` on, a page of the cache. Those past the sequence's end are copied
  // too: the stage's barrier counts whole boxes, and consumers clear those.
  EPIC_DEVICE static void CopyRecords(const Params& params, int at, int stage, int record) {
    if constexpr (Layout::kDecoded) {
      for (int c = 0; c < kLatent / Layout::kCodeBox; ++c) {
        const uint32_t to = Layout::Address(at + c * 64 * Layout::kCodeBox, 64 * Layout::kCodeBox);
        CopyTile(params.records, to, Layout::Full(stage), c * Layout::kCodeBox, record, 0);
      }
      const uint32_t to = Layout::Address(at + Layout::kCodeBytes, 64 * Layout::kEndBytes);
      CopyTile(params.record_ends, to, Layout::Full(stage), 0, record, 0);
    } else {
      for (int c = 0; c < Layout::kChunks; ++c) {
        const uint32_t to = Layout::Address(at + c * Layout::kChunkBytes, Layout::kChunkBytes);
        CopyTile(params.records, to, Layout::Full(stage), c * 64, record, 0);
      }
    }
  }

  // One thread's part of a tile: rows AccumulatorRow(thread, 0) and 8 further, `half` 0 and 1.
  struct Softmax {
    float maximum[2] = {-kMlaInfinity, -kMlaInfinity};
    float sum[2] = {0, 0};  // of this thread's keys
    int keys[2] = {0, 0};   // that the row sees
  };

  EPIC_DEVICE static void Consume(const MlaArguments& a) {
    int block = 0;
    int turn = 0;
    const int units = a.counts == nullptr ? a.unit_count : a.counts[1];
    for (int u = BlockIndex(); u < units; u += BlockCount(), ++turn) {
      const MlaUnit unit = a.units[u];
      Softmax softmax;
      for (int half = 0; half < 2; ++half) {
        const int i = AccumulatorRow(ThreadIndex() % 128, 2 * half);
        // A place without a query sees no key and is never written.
        if (i < unit.queries) softmax.keys[half] = a.positions[(unit.query + i) / a.heads] + 1;
      }
      float out[kColumns / 2];
      EPIC_UNROLL
      for (int i = 0; i < kColumns / 2; ++i) out[i] = 0;
      WaitForPhase(Layout::QueryFull(), turn & 1);
      for (int key = unit.key_begin; key < unit.key_end; key += kKeys, ++block) {
        const int stage = block % Layout::kStages;
        WaitForPhase(Layout::Full(stage), block / Layout::kStages & 1);
        const int at = Layout::kStageOffset + stage * Layout::kStageBytes;
        // Records past the tile's last position may hold another sequence's bytes, or anything.
        const int records = unit.key_end - key < kKeys ? unit.key_end - key : kKeys;
        if constexpr (Layout::kDecoded) {
          // The barrier says that no warp still multiplies the records decoded before.
          SyncThreads(Layout::kTailBarrier, kConsumers);
          MlaFp8Records<kLatent>::Decode(at, records);
          FenceAsyncProxy();
          SyncThreads(Layout::kTailBarrier, kConsumers);
          // The codes are read: the next ones may come while these are multiplied.
          if (LaneIndex() == 0) Arrive(Layout::Empty(stage));
          AddKeys(a, key, Layout::kDecodedOffset, softmax, out);
        } else {
          // Only a unit's last block can be short.
          if (records < kKeys) ClearTail(at, records);
          AddKeys(a, key, at, softmax, out);
          SyncWarp();
          // The values are read by products, which AddKeys has waited for.
          if (LaneIndex() == 0) Arrive(Layout::Empty(stage));
        }
      }
      SyncWarp();
      if (LaneIndex() == 0) Arrive(Layout::QueryEmpty());
      Finish(a, unit, softmax, out);
    }
  }

  // Zeros in place of the records from `first` on. Their weights are 0, but they may hold what was
  // never written, and 0 · NaN is NaN. Products read through the asynchronous proxy, so the zeros
  // need a fence before them.
  EPIC_DEVICE static void ClearTail(int at, int first) {
    const auto words = SharedAt<uint32_t>(at, Layout::kTileBytes / 4);
    const int tail_words = (kKeys - first) * kTileRowBytes / 4;
    for (int i = ThreadIndex(); i < Layout::kChunks * tail_words; i += kConsumers) {
      const int chunk = i / tail_words;
      words.Store(chunk * Layout::kChunkBytes / 4 + first * kTileRowBytes / 4 + i % tail_words, 0);
    }
    FenceAsyncProxy();
    // All of the tail must be clear before any warp multiplies.
    SyncThreads(Layout::kTailBarrier, kConsumers);
  }

  // Adds the 64 keys from `first_key` on, whose records lie at `at`, to softmax and output.
  EPIC_DEVICE static void AddKeys(const MlaArguments& a, int first_key, int at, Softmax& softmax,
                                  float (&out)[kColumns / 2]) {
    const int warpgroup = Uniform(WarpgroupIndex());
    float scores[kWarpgroupKeys / 2];
    Score(Layout::Address(at, Layout::kTileBytes) + warpgroup * kWarpgroupKeys * kTileRowBytes,
          scores);
    const int key = first_key + warpgroup * kWarpgroupKeys;
    float correction[2];
    Weigh(MlaExponentScale(a.softmax_scale), key, softmax, scores, correction);
    StoreWeights(scores);
    // Weights are stored by threads and read by products.
    FenceAsyncProxy();
    // Most blocks of keys change no row's maximum: then a whole warp skips the rescaling.
    if (Ballot(correction[0] != 1 || correction[1] != 1) != 0) {
      EPIC_UNROLL
      for (int i = 0; i < kColumns / 2; ++i) out[i] *= correction[i / 2 % 2];
    }
    SyncThreads(Layout::kWeightBarrier, kConsumers);

    // From here on the weights of both warpgroups stand in shared memory, and neither reads the
    // maxima that the next keys will overwrite.
    const uint32_t weights = Layout::Address(Layout::kWeightOffset, Layout::kChunkBytes);
    const uint32_t values = Layout::Address(at, Layout::kTileBytes) +
                            static_cast<uint32_t>(warpgroup * kColumns / 64 * Layout::kChunkBytes);
    // Weights [64 queries, 64 keys] times values: the same records again, read transposed
    // (MN-major).
    ProductsBegin();
    EPIC_UNROLL
    for (int k = 0; k < kKeys / 16; ++k) {
      const uint64_t right = MatrixDescriptor(values + k * 16 * kTileRowBytes, Layout::kChunkBytes,
                                              kTileAlignmentBytes);
      MultiplyBF16Transposed<kColumns>(out, RowsDescriptor(weights + k * 32), right, true);
    }
    ProductsCommit();
    ProductsWait<0>(out);
  }

  // scores [64 queries, this warpgroup's 32 keys] ← queries · recordsᵀ, over latent and rope.
  EPIC_DEVICE static void Score(uint32_t records, float (&scores)[kWarpgroupKeys / 2]) {
    const uint32_t queries = Layout::Address(0, Layout::kTileBytes);
    ProductsBegin();
    EPIC_UNROLL
    for (int k = 0; k < Layout::kChunks * 4; ++k) {
      const uint32_t to = k / 4 * Layout::kChunkBytes + k % 4 * 32;
      MultiplyBF16<kWarpgroupKeys>(scores, RowsDescriptor(queries + to),
                                   RowsDescriptor(records + to), k > 0);
    }
    ProductsCommit();
    ProductsWait<0>(scores);
  }

  // scores → weights; `correction` is what earlier sums and outputs are to be multiplied by. Both
  // warpgroups take the maximum over all 64 keys, so that their outputs have one scale. The sum
  // stays with this thread's keys until Finish: only the maximum must be known to all at once.
  EPIC_DEVICE static void Weigh(float exponent_scale, int first_key, Softmax& softmax,
                                float (&scores)[kWarpgroupKeys / 2], float (&correction)[2]) {
    const int thread = ThreadIndex() % 128;
    const int warpgroup = WarpgroupIndex();
    const auto maxima = SharedAt<float>(Layout::kMaximumOffset, 2 * 64);
    float maximum[2] = {-kMlaInfinity, -kMlaInfinity};
    EPIC_UNROLL
    for (int i = 0; i < kWarpgroupKeys / 2; ++i) {
      const int half = i / 2 % 2;
      // A key counts as −∞ where the row does not see it: it comes after the row, or past the end
      // of a short block.
      const bool seen = first_key + AccumulatorColumn(thread, i) < softmax.keys[half];
      if (!seen) scores[i] = -kMlaInfinity;
      maximum[half] = scores[i] > maximum[half] ? scores[i] : maximum[half];
    }
    EPIC_UNROLL
    for (int half = 0; half < 2; ++half) {
      // Four neighbouring lanes hold a row of the accumulator.
      for (int mask = 1; mask < 4; mask *= 2) {
        const float other = ShuffleXor(maximum[half], mask);
        maximum[half] = other > maximum[half] ? other : maximum[half];
      }
      const int row = AccumulatorRow(thread, 2 * half);
      if (thread % 4 == 0) maxima.Store(warpgroup * 64 + row, maximum[half]);
    }
    SyncThreads(Layout::kExchangeBarrier, kConsumers);
    EPIC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = AccumulatorRow(thread, 2 * half);
      const float other = maxima.Load((1 - warpgroup) * 64 + row);
      float now = other > maximum[half] ? other : maximum[half];
      now = softmax.maximum[half] > now ? softmax.maximum[half] : now;
      correction[half] = MlaRescale(softmax.maximum[half], now, exponent_scale);
      softmax.maximum[half] = now;
      float sum = 0;
      EPIC_UNROLL
      for (int i = 0; i < kWarpgroupKeys / 2; ++i) {
        if (i / 2 % 2 != half) continue;
        // While all keys are masked the maximum is −∞ too, and −∞ − −∞ would be NaN.
        const bool seen = scores[i] != -kMlaInfinity;
        scores[i] = seen ? FastExp2((scores[i] - now) * exponent_scale) : 0.0f;
        sum += scores[i];
      }
      softmax.sum[half] = Fma(softmax.sum[half], correction[half], sum);
    }
  }

  // Rounded once to BF16. The sum above has the unrounded ones (mla_decode.h says so).
  EPIC_DEVICE static void StoreWeights(const float (&weights)[kWarpgroupKeys / 2]) {
    const int thread = ThreadIndex() % 128;
    const auto words = SharedAt<uint32_t>(Layout::kWeightOffset, Layout::kChunkBytes / 4);
    EPIC_UNROLL
    for (int i = 0; i < kWarpgroupKeys / 2; i += 2) {
      const uint32_t pair = ToBF16Pair(weights[i], weights[i + 1]);
      const int key = WarpgroupIndex() * kWarpgroupKeys + AccumulatorColumn(thread, i);
      const uint32_t byte = AccumulatorRow(thread, i) * kTileRowBytes + key * 2;
      words.Store(static_cast<int>(Swizzled(byte) / 4), pair);
    }
  }

  // Adds up the sums of the rows' keys, and writes rows that have only this split as results, all
  // others as partial results for the merge: the output before it is divided by the sum.
  EPIC_DEVICE static void Finish(const MlaArguments& a, const MlaUnit& unit, const Softmax& softmax,
                                 const float (&out)[kColumns / 2]) {
    const int thread = ThreadIndex() % 128;
    const int warpgroup = WarpgroupIndex();
    const auto sums = SharedAt<float>(Layout::kSumOffset, 2 * 64);
    for (int half = 0; half < 2; ++half) {
      float sum = softmax.sum[half];
      sum += ShuffleXor(sum, 1);
      sum += ShuffleXor(sum, 2);
      if (thread % 4 == 0) sums.Store(warpgroup * 64 + AccumulatorRow(thread, 2 * half), sum);
    }
    SyncThreads(Layout::kExchangeBarrier, kConsumers);
    EPIC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = AccumulatorRow(thread, 2 * half);
      // The order of the two halves is fixed, so the sum has the same bits in both warpgroups.
      const float sum = sums.Load(row) + sums.Load(64 + row);
      if (softmax.keys[half] <= unit.key_begin) continue;  // nothing of this split, or no query
      // The row's own keys decide, not the tile's: a row that ends in the first split has no merge
      // to wait for, though its tile has.
      const bool whole = softmax.keys[half] <= a.split_tokens;
      const float factor = 1.0f / sum;
      if (!whole && warpgroup == 0 && thread % 4 == 0) {
        a.partial_states[unit.partial + row] = {softmax.maximum[half], sum};
      }
      const int64_t to = int64_t{whole ? unit.query + row : unit.partial + row} * kLatent;
      EPIC_UNROLL
      for (int i = 2 * half; i < kColumns / 2; i += 4) {
        const int64_t at = to + warpgroup * kColumns + AccumulatorColumn(thread, i);
        for (int j = 0; j < 2; ++j) {
          if (whole) {
            a.out[at + j] = ToBF16(out[i + j] * factor);
          } else {
            a.partial_values[at + j] = out[i + j];
          }
        }
      }
    }
  }
};

}  // namespace epic::kernels::cuda
