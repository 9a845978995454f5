// Attention over the lanes of the including file: a lane is one (row, head), so a key is loaded
// once for all lanes and each sum runs in one accumulator.
//
// The order of every sum is the oracle's (kernels/reference/attend_fma.cc): loops may be cut into
// passes, as kDepth and kGroup do, only where a sum is stored and continued unchanged.
#pragma once

#include "kernels/cpu/vector_rows_inl.h"

namespace epic::kernels {
namespace {

constexpr int kBlockKeys = 64;
constexpr float kMinusInfinity = -__builtin_inff();
// Keys (or latent values) that one pass keeps in registers; AttentionPartialFloats rounds up to it.
constexpr int kGroup = 4 * kVectorsPerAttentionTile;
// Values of queries and keys that one pass over a block's keys goes through. 96 floats of 64 keys
// and of 16 or 32 lanes of queries are 30 or 36 KiB: they stay in a first-level cache of 32 or 48
// KiB. Chosen by this sum; attention_benchmark has the speed of the whole.
constexpr int kDepth = 96;

// The parts of the scratch, each row `lanes` (or key_stride) floats long.
struct AttentionBuffers {
  int64_t lanes;
  int64_t key_stride;
  float* queries;  // [width][lanes]
  float* scores;   // [kBlockKeys][lanes]
  float* keys;     // [kBlockKeys][key_stride]
  int64_t values;  // where in a key's row its values begin

  AttentionBuffers(const AttentionTile& tile, std::byte* scratch)
      : lanes(tile.stride), key_stride((tile.latent_dim + tile.rope_dim + 15) / 16 * 16) {
    values = tile.values_offset_bytes > 0 ? key_stride : 0;
    if (values > 0) key_stride += (tile.value_dim + 15) / 16 * 16;
    queries = reinterpret_cast<float*>(scratch);
    scores = queries + (tile.latent_dim + tile.rope_dim) * lanes;
    keys = scores + kBlockKeys * lanes;
  }
};

struct Block {
  int first_key;
  int keys;
  bool masked;            // some lane does not see some key
  const char* next;       // records to bring near meanwhile; null: none
  int64_t bytes_of_part;  // of them, for each part of the scores
};

void AttentionLoad(const AttentionTile& tile, std::byte* scratch) {
  const AttentionBuffers buffers(tile, scratch);
  const int width = tile.latent_dim + tile.rope_dim;
  for (int lane = 0; lane < buffers.lanes; ++lane) {
    // Queries are transposed, so that one load brings value i of all lanes. Lanes past the tile's
    // are zeros.
    float* to = buffers.queries + lane;
    for (int i = 0; i < width; ++i) {
      const uint32_t bits =
          lane < tile.lanes ? static_cast<uint32_t>(tile.queries[lane][i].bits) << 16 : 0;
      __builtin_memcpy(to + i * buffers.lanes, &bits, sizeof(bits));
    }
  }
}

// Values go 16 at a time; a record's codes and the row of floats have room for the surplus behind
// the latent.
void WidenFp8(const std::byte* record, const AttentionTile& tile, float* to) {
  const auto* codes = reinterpret_cast<const char*>(record);
  const auto* scales = reinterpret_cast<const float*>(record + tile.scales_offset_bytes);
  for (int i = 0; i < tile.latent_dim; i += 16) {
    // LoadE4M3 gives 2⁻⁸ of a value, and both factors are powers of two: every product is exact.
    Store(to + i, LoadE4M3(codes + i) * Set1(256.0f) * Set1(scales[i / 128]));
  }
}

void WidenKeys(const AttentionTile& tile, const std::byte* page, int count,
               const AttentionBuffers& buffers) {
  for (int j = 0; j < count; ++j) {
    const std::byte* record = page + j * tile.record_bytes;
    float* to = buffers.keys + j * buffers.key_stride;
    if (tile.fp8) {
      WidenFp8(record, tile, to);
    } else {
      Widen(reinterpret_cast<const BF16*>(record), tile.latent_dim, to);
    }
    Widen(reinterpret_cast<const BF16*>(record + tile.rope_offset_bytes), tile.rope_dim,
          to + tile.latent_dim);
    // Expanded records have values of their own; absorbed ones are summed by their latents.
    if (buffers.values > 0) {
      Widen(reinterpret_cast<const BF16*>(record + tile.values_offset_bytes), tile.value_dim,
            to + buffers.values);
    }
  }
}

// sums[i][lane] continues over query·key of d in [begin, end), for kGroup keys of a block.
template <int kVectors>
[[gnu::always_inline]] inline void AddScores(const float* queries, int64_t lanes, const float* keys,
                                             int64_t key_stride, int begin, int end, float scale,
                                             float* sums) {
  // kGroup keys by kVectors vectors of lanes are independent chains in registers, so that FMAs need
  // not wait for each other.
  F16 acc[kGroup][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kGroup; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      // Later passes continue the sums that earlier ones stored, so the tree stays one chain.
      acc[i][v] = begin == 0 ? Zero() : Load(sums + i * lanes + v * kLanes);
    }
  }
  for (int d = begin; d < end; ++d) {
    F16 q[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) q[v] = Load(queries + d * lanes + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) {
      const F16 key = Set1(keys[i * key_stride + d]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) acc[i][v] = Fma(q[v], key, acc[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kGroup; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      Store(sums + i * lanes + v * kLanes, acc[i][v] * Set1(scale));
    }
  }
}

// scores[j][lane] ← scale · Σ query·key. The last group's surplus keys are whatever the buffer
// holds, and are not used.
template <int kVectors>
void Scores(const AttentionTile& tile, const AttentionBuffers& buffers, int lane,
            const Block& block) {
  const int width = tile.latent_dim + tile.rope_dim;
  // The first lanes bring the next page near, a share with each group of keys: all lanes would
  // fetch it again and again.
  const char* next = lane == 0 ? block.next : nullptr;
  for (int begin = 0; begin < width; begin += kDepth) {
    const int end = begin + kDepth < width ? begin + kDepth : width;
    for (int j = 0; j < block.keys; j += kGroup) {
      if (next != nullptr) {
        for (int64_t i = 0; i < block.bytes_of_part; i += 64) _mm_prefetch(next + i, _MM_HINT_T1);
        next += block.bytes_of_part;
      }
      // Only the last pass scales: the product by 1 in the passes before changes no bit.
      AddScores<kVectors>(buffers.queries + lane, buffers.lanes,
                          buffers.keys + j * buffers.key_stride, buffers.key_stride, begin, end,
                          end == width ? tile.scale : 1.0f,
                          buffers.scores + j * buffers.lanes + lane);
    }
  }
}

// Equal maxima may both be −∞, whose difference is NaN.
inline F16 Rescale(F16 from, F16 to) {
  return Select(Equal(from, to), Set1(1.0f), ExpLanes(from - to));
}

// scores ← weights relative to the new maximum (0 where the key is not seen); updates m and l and
// returns what the sums so far are to be multiplied by.
F16 Weights(const AttentionTile& tile, const AttentionBuffers& buffers, int lane,
            const Block& block, float* partial) {
  const int64_t lanes = buffers.lanes;
  float* scores = buffers.scores + lane;
  const int32_t* positions = tile.positions + lane;
  // `partial` holds the lanes' maxima, then their sums, then their values.
  const F16 before = Load(partial + lane);
  F16 maximum = before;
  for (int j = 0; j < block.keys; ++j) {
    // A NaN is never the larger one: it does not become the maximum, and its weight is NaN.
    const F16 larger = Larger(Load(scores + j * lanes), maximum);
    maximum =
        block.masked ? Select(AtLeast(positions, block.first_key + j), larger, maximum) : larger;
  }
  const F16 correction = Rescale(before, maximum);
  F16 sum = Load(partial + lanes + lane) * correction;
  for (int j = 0; j < block.keys; ++j) {
    // For a key that the lane does not see this may be anything, also NaN: Select below drops it.
    F16 weight = ExpLanes(Load(scores + j * lanes) - maximum);
    if (block.masked) {
      weight = Select(AtLeast(positions, block.first_key + j), weight, Zero());
    }
    // The sum is FP32 and goes key by key, as the oracle adds.
    sum = sum + weight;
    Store(scores + j * lanes, weight);
  }
  Store(partial + lane, maximum);
  Store(partial + lanes + lane, sum);
  return correction;
}

// o ← o·correction + Σ weight·latent, for kGroup values of the latents. A key that a lane does not
// see leaves the lane untouched, whatever its record holds.
template <int kVectors, bool kMasked>
[[gnu::always_inline]] inline void AddValueGroup(const AttentionTile& tile,
                                                 const AttentionBuffers& buffers, int lane,
                                                 const Block& block,
                                                 const F16 (&correction)[kVectors], int d,
                                                 float* values) {
  const int64_t lanes = buffers.lanes;
  F16 acc[kGroup][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kGroup; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      acc[i][v] = Load(values + (d + i) * lanes + v * kLanes) * correction[v];
    }
  }
  const float* key = buffers.keys + buffers.values + d;
  const float* weights = buffers.scores + lane;
  for (int j = 0; j < block.keys; ++j, key += buffers.key_stride, weights += lanes) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const F16 weight = Load(weights + v * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kGroup; ++i) {
        const F16 sum = Fma(weight, Set1(key[i]), acc[i][v]);
        if constexpr (kMasked) {
          const M16 seen = AtLeast(tile.positions + lane + v * kLanes, block.first_key + j);
          // 0 · NaN would be NaN, so a weight of 0 is not enough.
          acc[i][v] = Select(seen, sum, acc[i][v]);
        } else {
          acc[i][v] = sum;
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kGroup; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) Store(values + (d + i) * lanes + v * kLanes, acc[i][v]);
  }
}

// The last group's surplus values are of the rope keys or no values, and are not used.
template <int kVectors, bool kMasked>
void AddValues(const AttentionTile& tile, const AttentionBuffers& buffers, int lane,
               const Block& block, const F16 (&correction)[kVectors], float* partial) {
  float* values = partial + 2 * buffers.lanes + lane;
  for (int d = 0; d < tile.value_dim; d += kGroup) {
    AddValueGroup<kVectors, kMasked>(tile, buffers, lane, block, correction, d, values);
  }
}

template <int kVectors>
void AddBlock(const AttentionTile& tile, const AttentionBuffers& buffers, int lane,
              const Block& block, float* partial) {
  Scores<kVectors>(tile, buffers, lane, block);
  F16 correction[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    correction[v] = Weights(tile, buffers, lane + v * kLanes, block, partial);
  }
  // Most blocks are seen by all lanes: they take the loop without a mask.
  if (block.masked) {
    AddValues<kVectors, true>(tile, buffers, lane, block, correction, partial);
  } else {
    AddValues<kVectors, false>(tile, buffers, lane, block, correction, partial);
  }
}

int LowestPosition(const AttentionTile& tile) {
  int lowest = tile.positions[0];
  for (int i = 1; i < tile.lanes; ++i) {
    lowest = tile.positions[i] < lowest ? tile.positions[i] : lowest;
  }
  return lowest;
}

void AttentionSplit(const AttentionTile& tile, const std::byte* const* pages, int key_begin,
                    int key_end, std::byte* scratch, float* partial) {
  const AttentionBuffers buffers(tile, scratch);
  const int lanes = static_cast<int>(buffers.lanes);
  const int width = tile.latent_dim + tile.rope_dim;
  for (int i = 0; i < lanes; ++i) partial[i] = kMinusInfinity;
  __builtin_memset(partial + lanes, 0, sizeof(float) * lanes * (1 + (tile.value_dim + 7) / 8 * 8));
  const int lowest = LowestPosition(tile);
  const int64_t parts = int64_t{(width + kDepth - 1) / kDepth} * (kBlockKeys / kGroup);
  for (int first = key_begin; first < key_end; first += kBlockKeys) {
    const int keys = key_end - first < kBlockKeys ? key_end - first : kBlockKeys;
    const std::byte* const* page = pages + (first - key_begin) / kBlockKeys;
    // A block is masked if its last key comes after the lowest position.
    const Block block{first, keys, first + keys - 1 > lowest,
                      reinterpret_cast<const char*>(page[1]),
                      kBlockKeys * tile.record_bytes / parts};
    // Keys are widened once for all lanes of the tile, which is why lanes share a sequence.
    WidenKeys(tile, *page, keys, buffers);
    // Wide passes come first; lanes that fill none go one vector at a time. A lane's chain is the
    // same in both.
    int lane = 0;
    for (; lane + kVectorsPerAttentionTile * kLanes <= lanes;
         lane += kVectorsPerAttentionTile * kLanes) {
      AddBlock<kVectorsPerAttentionTile>(tile, buffers, lane, block, partial);
    }
    for (; lane < lanes; lane += kLanes) AddBlock<1>(tile, buffers, lane, block, partial);
  }
}

// Lanes whose row ends before this split stay as they are: their partial result is of no keys.
void AttentionMerge(const AttentionTile& tile, int key_begin, const float* partial, float* total) {
  const int lanes = tile.stride;
  for (int lane = 0; lane < lanes; lane += kLanes) {
    const M16 seen = AtLeast(tile.positions + lane, key_begin);
    const F16 m1 = Load(total + lane);
    const F16 m2 = Load(partial + lane);
    const F16 maximum = Larger(m2, m1);
    const F16 a = Rescale(m1, maximum);
    const F16 b = Rescale(m2, maximum);
    Store(total + lane, Select(seen, maximum, m1));
    // The sum and the values are rescaled alike: row 1 is the sum, and values follow.
    for (int i = 0; i <= tile.value_dim; ++i) {
      const int64_t at = int64_t{1 + i} * lanes + lane;
      const F16 before = Load(total + at);
      const F16 after = Fma(before, a, Load(partial + at) * b);
      Store(total + at, Select(seen, after, before));
    }
  }
}

void AttentionFinish(const AttentionTile& tile, const float* total, BF16* const* out) {
  const int lanes = tile.stride;
  for (int lane = 0; lane < tile.lanes; lane += kLanes) {
    const int count = tile.lanes - lane < kLanes ? tile.lanes - lane : kLanes;
    // Each lane divides once and then multiplies, as the oracle does.
    const F16 factor = Set1(1.0f) / Load(total + lanes + lane);
    for (int d = 0; d < tile.value_dim; ++d) {
      BF16 rounded[kLanes];
      // The addition of 0 makes −0 a 0, as in the oracle.
      StoreBF16(rounded, Fma(Load(total + int64_t{2 + d} * lanes + lane), factor, Zero()));
      for (int i = 0; i < count; ++i) out[lane + i][d] = rounded[i];
    }
  }
}

}  // namespace
}  // namespace epic::kernels
