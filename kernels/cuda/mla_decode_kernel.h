// The kernels of mla_decode.h. A tile of 64 queries stays in shared memory; a warp brings the
// records of 64 keys at a time by bulk copies, into one of two stages. Two warpgroups each score
// half of the keys (64×32), exchange their maxima, share the weights through shared memory and
// multiply all of them with their own half of the latent's columns: keys and values are the same
// bytes, once K-major, once transposed.
#pragma once

#include <limits>

#include "kernels/cuda/device/device.h"
#include "kernels/cuda/mla_decode.h"

namespace epic::kernels::cuda {

inline constexpr float kMlaInfinity = std::numeric_limits<float>::infinity();

// e^(difference·scale) as 2^(difference·exponent_scale); 1 if nothing changed, also from −∞.
EPIC_DEVICE float MlaRescale(float from, float to, float exponent_scale) {
  return from == to ? 1.0f : FastExp2((from - to) * exponent_scale);
}
EPIC_DEVICE float MlaExponentScale(float softmax_scale) { return softmax_scale * 1.44269504f; }

struct MlaParams {
  TensorMap query;    // [rows·heads, latent + rope], box 64 × 64
  TensorMap records;  // [pages·64, latent + rope], box 64 × 64; FP8: box 64 × up to 256 codes
  TensorMap record_ends;  // FP8: scales and rope, box 64 × all of them
  MlaArguments arguments;
};

inline constexpr int kMlaCodeBoxBytes = 256;

template <int kLatent, KvType kType>
struct MlaSplitKernel {
  using Params = MlaParams;
  static constexpr int kConsumers = 256;
  static constexpr int kThreads = kConsumers + 128;
  static constexpr int kBlocksPerSm = 1;
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
  static constexpr int kDecodedOffset = kStageOffset + (kStages * kStageBytes + 1023) / 1024 * 1024;
  static constexpr int kWeightOffset = kDecodedOffset + (kDecoded ? kTileBytes : 0);
  static constexpr int kMaximumOffset = kWeightOffset + kChunkBytes;
  static constexpr int kSumOffset = kMaximumOffset + 2 * 64 * 4;
  static constexpr int kBarrierOffset = kSumOffset + 2 * 64 * 4;
  static constexpr int kSharedBytes = kBarrierOffset + (2 + 2 * kStages) * 8;

  // Registers that a thread keeps once the roles are known.
  static constexpr int kProducerRegisters = 24;
  static constexpr int kConsumerRegisters = 240;
  static_assert(128 * kProducerRegisters + kConsumers * kConsumerRegisters <= 64 * 1024);

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

  EPIC_DEVICE static void Run(const Params& params) {
    if (ThreadIndex() == 0) {
      InitBarrier(QueryFull(), 1);
      InitBarrier(QueryEmpty(), kConsumers / 32);
      for (int stage = 0; stage < kStages; ++stage) {
        InitBarrier(Full(stage), 1);
        InitBarrier(Empty(stage), kConsumers / 32);
      }
      FenceBarrierInit();
    }
    SyncBlock();
    if (Uniform(WarpgroupIndex()) == 2) {
      ReleaseRegisters<kProducerRegisters>();
      if (ThreadIndex() == kConsumers) Produce(params);
    } else {
      ClaimRegisters<kConsumerRegisters>();
      Consume(params.arguments);
    }
  }

  EPIC_DEVICE static void Produce(const Params& params) {
    const MlaArguments& a = params.arguments;
    int block = 0;
    int turn = 0;
    const int units = a.counts == nullptr ? a.unit_count : a.counts[1];
    for (int u = BlockIndex(); u < units; u += BlockCount(), ++turn) {
      const MlaUnit unit = a.units[u];
      WaitForPhase(QueryEmpty(), (turn & 1) ^ 1);
      ArriveAndExpect(QueryFull(), kTileBytes);
      for (int c = 0; c < kChunks; ++c) {
        CopyTile(params.query, Address(c * kChunkBytes, kChunkBytes), QueryFull(), c * 64,
                 unit.query, 0);
      }
      for (int key = unit.key_begin; key < unit.key_end; key += kKeys, ++block) {
        const int stage = block % kStages;
        const int page = a.pages[unit.first_page + key / kKeys];
        WaitForPhase(Empty(stage), (block / kStages & 1) ^ 1);
        ArriveAndExpect(Full(stage), kStageBytes);
        CopyRecords(params, kStageOffset + stage * kStageBytes, stage, page * kKeys);
      }
    }
  }

  EPIC_DEVICE static void CopyRecords(const Params& params, int at, int stage, int record) {
    if constexpr (kDecoded) {
      for (int c = 0; c < kLatent / kCodeBox; ++c) {
        const uint32_t to = Address(at + c * 64 * kCodeBox, 64 * kCodeBox);
        CopyTile(params.records, to, Full(stage), c * kCodeBox, record, 0);
      }
      const uint32_t to = Address(at + kCodeBytes, 64 * kEndBytes);
      CopyTile(params.record_ends, to, Full(stage), 0, record, 0);
    } else {
      for (int c = 0; c < kChunks; ++c) {
        const uint32_t to = Address(at + c * kChunkBytes, kChunkBytes);
        CopyTile(params.records, to, Full(stage), c * 64, record, 0);
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
        if (i < unit.queries) softmax.keys[half] = a.positions[(unit.query + i) / a.heads] + 1;
      }
      float out[kColumns / 2];
      EPIC_UNROLL
      for (int i = 0; i < kColumns / 2; ++i) out[i] = 0;
      WaitForPhase(QueryFull(), turn & 1);
      for (int key = unit.key_begin; key < unit.key_end; key += kKeys, ++block) {
        const int stage = block % kStages;
        WaitForPhase(Full(stage), block / kStages & 1);
        const int at = kStageOffset + stage * kStageBytes;
        const int records = unit.key_end - key < kKeys ? unit.key_end - key : kKeys;
        if constexpr (kDecoded) {
          SyncThreads(kTailBarrier, kConsumers);  // nobody multiplies the last ones any more
          Decode(at, records);
          FenceAsyncProxy();
          SyncThreads(kTailBarrier, kConsumers);
          if (LaneIndex() == 0) Arrive(Empty(stage));
          AddKeys(a, key, kDecodedOffset, softmax, out);
        } else {
          if (records < kKeys) ClearTail(at, records);
          AddKeys(a, key, at, softmax, out);
          SyncWarp();
          if (LaneIndex() == 0) Arrive(Empty(stage));
        }
      }
      SyncWarp();
      if (LaneIndex() == 0) Arrive(QueryEmpty());
      Finish(a, unit, softmax, out);
    }
  }

  // Zeros in place of records that nobody may multiply.
  EPIC_DEVICE static void ClearTail(int at, int first) {
    const auto words = SharedAt<uint32_t>(at, kTileBytes / 4);
    const int tail_words = (kKeys - first) * kTileRowBytes / 4;
    for (int i = ThreadIndex(); i < kChunks * tail_words; i += kConsumers) {
      const int chunk = i / tail_words;
      words.Store(chunk * kChunkBytes / 4 + first * kTileRowBytes / 4 + i % tail_words, 0);
    }
    FenceAsyncProxy();
    SyncThreads(kTailBarrier, kConsumers);
  }

  struct alignas(16) Chunk {
    uint32_t words[4];
  };

  // Where 16 bytes of a row lie in the decoded tile; `byte` is of the row's 2·(latent + rope).
  EPIC_DEVICE static int DecodedChunk(int row, int byte) {
    const uint32_t in_chunk = row * kTileRowBytes + byte % kTileRowBytes;
    return static_cast<int>(byte / kTileRowBytes * kChunkBytes + Swizzled(in_chunk)) / 16;
  }

  // The records at `at` → BF16 in the decoded tile; zeros from the `records`-th on.
  EPIC_DEVICE static void Decode(int at, int records) {
    const auto codes = SharedAt<Chunk>(at, kCodeBytes / 16);
    const auto ends = SharedAt<Chunk>(at + kCodeBytes, 64 * kEndBytes / 16);
    const auto scales = SharedAt<float>(at + kCodeBytes, 64 * kEndBytes / 4);
    const auto tile = SharedAt<Chunk>(kDecodedOffset, kTileBytes / 16);
    constexpr int kRowChunks = kLatent / 16;
    for (int i = ThreadIndex(); i < kKeys * kRowChunks; i += kConsumers) {
      const int row = i / kRowChunks;
      const int column = i % kRowChunks * 16;
      const int box = column / kCodeBox;
      Chunk decoded[2] = {};
      if (row < records) {
        const Chunk chunk =
            codes.Load((box * 64 * kCodeBox + row * kCodeBox + column % kCodeBox) / 16);
        const float scale = scales.Load(row * kEndBytes / 4 + column / kKvScaleBlock);
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
    constexpr int kRopeChunks = kMlaRopeDim * 2 / 16;
    for (int i = ThreadIndex(); i < kKeys * kRopeChunks; i += kConsumers) {
      const int row = i / kRopeChunks;
      const int chunk = i % kRopeChunks;
      constexpr int kFirst = kRopeOffset / 16;
      const Chunk rope = row < records ? ends.Load(row * kEndBytes / 16 + kFirst + chunk) : Chunk{};
      tile.Store(DecodedChunk(row, kLatent * 2 + chunk * 16), rope);
    }
  }

  EPIC_DEVICE static void AddKeys(const MlaArguments& a, int first_key, int at, Softmax& softmax,
                                  float (&out)[kColumns / 2]) {
    const int warpgroup = Uniform(WarpgroupIndex());
    float scores[kWarpgroupKeys / 2];
    Score(Address(at, kTileBytes) + warpgroup * kWarpgroupKeys * kTileRowBytes, scores);
    const int key = first_key + warpgroup * kWarpgroupKeys;
    float correction[2];
    Weigh(MlaExponentScale(a.softmax_scale), key, softmax, scores, correction);
    StoreWeights(scores);
    FenceAsyncProxy();
    if (Ballot(correction[0] != 1 || correction[1] != 1) != 0) {
      EPIC_UNROLL
      for (int i = 0; i < kColumns / 2; ++i) out[i] *= correction[i / 2 % 2];
    }
    SyncThreads(kWeightBarrier, kConsumers);

    const uint32_t weights = Address(kWeightOffset, kChunkBytes);
    const uint32_t values =
        Address(at, kTileBytes) + static_cast<uint32_t>(warpgroup * kColumns / 64 * kChunkBytes);
    ProductsBegin();
    EPIC_UNROLL
    for (int k = 0; k < kKeys / 16; ++k) {
      const uint64_t right =
          MatrixDescriptor(values + k * 16 * kTileRowBytes, kChunkBytes, kTileAlignmentBytes);
      MultiplyBF16Transposed<kColumns>(out, RowsDescriptor(weights + k * 32), right, true);
    }
    ProductsCommit();
    ProductsWait<0>(out);
  }

  EPIC_DEVICE static void Score(uint32_t records, float (&scores)[kWarpgroupKeys / 2]) {
    const uint32_t queries = Address(0, kTileBytes);
    ProductsBegin();
    EPIC_UNROLL
    for (int k = 0; k < kChunks * 4; ++k) {
      const uint32_t to = k / 4 * kChunkBytes + k % 4 * 32;
      MultiplyBF16<kWarpgroupKeys>(scores, RowsDescriptor(queries + to),
                                   RowsDescriptor(records + to), k > 0);
    }
    ProductsCommit();
    ProductsWait<0>(scores);
  }

  // scores → weights; `correction` is what earlier sums and outputs are to be multiplied by.
  EPIC_DEVICE static void Weigh(float exponent_scale, int first_key, Softmax& softmax,
                                float (&scores)[kWarpgroupKeys / 2], float (&correction)[2]) {
    const int thread = ThreadIndex() % 128;
    const int warpgroup = WarpgroupIndex();
    const auto maxima = SharedAt<float>(kMaximumOffset, 2 * 64);
    float maximum[2] = {-kMlaInfinity, -kMlaInfinity};
    EPIC_UNROLL
    for (int i = 0; i < kWarpgroupKeys / 2; ++i) {
      const int half = i / 2 % 2;
      const bool seen = first_key + AccumulatorColumn(thread, i) < softmax.keys[half];
      if (!seen) scores[i] = -kMlaInfinity;
      maximum[half] = scores[i] > maximum[half] ? scores[i] : maximum[half];
    }
    EPIC_UNROLL
    for (int half = 0; half < 2; ++half) {
      for (int mask = 1; mask < 4; mask *= 2) {
        const float other = ShuffleXor(maximum[half], mask);
        maximum[half] = other > maximum[half] ? other : maximum[half];
      }
      const int row = AccumulatorRow(thread, 2 * half);
      if (thread % 4 == 0) maxima.Store(warpgroup * 64 + row, maximum[half]);
    }
    SyncThreads(kExchangeBarrier, kConsumers);
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
        const bool seen = scores[i] != -kMlaInfinity;
        scores[i] = seen ? FastExp2((scores[i] - now) * exponent_scale) : 0.0f;
        sum += scores[i];
      }
      softmax.sum[half] = Fma(softmax.sum[half], correction[half], sum);
    }
  }

  EPIC_DEVICE static void StoreWeights(const float (&weights)[kWarpgroupKeys / 2]) {
    const int thread = ThreadIndex() % 128;
    const auto words = SharedAt<uint32_t>(kWeightOffset, kChunkBytes / 4);
    EPIC_UNROLL
    for (int i = 0; i < kWarpgroupKeys / 2; i += 2) {
      const uint32_t pair = ToBF16Pair(weights[i], weights[i + 1]);
      const int key = WarpgroupIndex() * kWarpgroupKeys + AccumulatorColumn(thread, i);
      const uint32_t byte = AccumulatorRow(thread, i) * kTileRowBytes + key * 2;
      words.Store(static_cast<int>(Swizzled(byte) / 4), pair);
    }
  }

  EPIC_DEVICE static void Finish(const MlaArguments& a, const MlaUnit& unit, const Softmax& softmax,
                                 const float (&out)[kColumns / 2]) {
    const int thread = ThreadIndex() % 128;
    const int warpgroup = WarpgroupIndex();
    const auto sums = SharedAt<float>(kSumOffset, 2 * 64);
    for (int half = 0; half < 2; ++half) {
      float sum = softmax.sum[half];
      sum += ShuffleXor(sum, 1);
      sum += ShuffleXor(sum, 2);
      if (thread % 4 == 0) sums.Store(warpgroup * 64 + AccumulatorRow(thread, 2 * half), sum);
    }
    SyncThreads(kExchangeBarrier, kConsumers);
    EPIC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = AccumulatorRow(thread, 2 * half);
      const float sum = sums.Load(row) + sums.Load(64 + row);
      if (softmax.keys[half] <= unit.key_begin) continue;  // nothing of this split, or no query
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

// Merges the splits of the queries that have several: a block per place in a tile.
template <int kLatent>
struct MlaMergeKernel {
  using Params = MlaArguments;
  static constexpr int kThreads = 128;
  static constexpr int kSharedBytes = 0;
  static constexpr int kBlocksPerSm = 1;
  static constexpr int kValues = kLatent / kThreads;

  EPIC_DEVICE static void Run(const Params& a) {
    const int t = BlockIndex() / kMlaTileQueries;
    if (a.counts != nullptr && t >= a.counts[0]) return;
    const MlaTile tile = a.tiles[t];
    const int i = BlockIndex() % kMlaTileQueries;
    if (i >= tile.queries) return;
    const int query = tile.query + i;
    const int splits = a.positions[query / a.heads] / a.split_tokens + 1;
    if (splits == 1) return;
    const float exponent_scale = MlaExponentScale(a.softmax_scale);
    MlaState total = {0, 0};
    float values[kValues] = {};
    for (int s = 0; s < splits; ++s) {
      const int64_t row = a.units[tile.first_unit + s].partial + i;
      const MlaState split = a.partial_states[row];
      const float* from = a.partial_values + row * kLatent + ThreadIndex();
      const bool first = s == 0;
      const float maximum = first || split.maximum > total.maximum ? split.maximum : total.maximum;
      const float old_factor = first ? 0 : MlaRescale(total.maximum, maximum, exponent_scale);
      const float factor = MlaRescale(split.maximum, maximum, exponent_scale);
      total.maximum = maximum;
      total.sum = first ? split.sum : Fma(total.sum, old_factor, split.sum * factor);
      EPIC_UNROLL
      for (int j = 0; j < kValues; ++j) {
        const float value = from[j * kThreads];
        values[j] = first ? value : Fma(values[j], old_factor, value * factor);
      }
    }
    const float factor = 1.0f / total.sum;
    EPIC_UNROLL
    for (int j = 0; j < kValues; ++j) {
      a.out[int64_t{query} * kLatent + j * kThreads + ThreadIndex()] = ToBF16(values[j] * factor);
    }
  }
};

}  // namespace epic::kernels::cuda
