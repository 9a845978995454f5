// Absorbed attention over the lanes of the including file: a lane is one (row, head), so a key is
// loaded once for all lanes and each sum runs in one accumulator.
#pragma once

#include "kernels/cpu/vector_rows_inl.h"

namespace epic::kernels {
namespace {

constexpr int kTileLanes = AttentionTile::kLanesMax;
constexpr int kBlockKeys = 64;
constexpr float kMinusInfinity = -__builtin_inff();
// Keys (or latent values) that one pass keeps in registers.
constexpr int kGroup = 4 * kVectorsPerAttentionTile;

// The parts of the scratch and of a partial result.
struct AttentionBuffers {
  float* queries;  // [width][kTileLanes]
  float* scores;   // [kBlockKeys][kTileLanes]
  float* keys;     // [kBlockKeys][key_stride]
  int64_t key_stride;

  AttentionBuffers(const AttentionTile& tile, std::byte* scratch) {
    const int64_t width = tile.latent_dim + tile.rope_dim;
    queries = reinterpret_cast<float*>(scratch);
    scores = queries + width * kTileLanes;
    keys = scores + int64_t{kBlockKeys} * kTileLanes;
    key_stride = (width + 15) / 16 * 16;
  }
};

struct Block {
  int first_key;
  int keys;
  bool masked;  // some lane does not see some key
};

void AttentionLoad(const AttentionTile& tile, std::byte* scratch) {
  const AttentionBuffers buffers(tile, scratch);
  const int width = tile.latent_dim + tile.rope_dim;
  for (int lane = 0; lane < kTileLanes; ++lane) {
    float* to = buffers.queries + lane;
    for (int i = 0; i < width; ++i) {
      const uint32_t bits =
          lane < tile.lanes ? static_cast<uint32_t>(tile.queries[lane][i].bits) << 16 : 0;
      __builtin_memcpy(to + int64_t{i} * kTileLanes, &bits, sizeof(bits));
    }
  }
}

void WidenKeys(const AttentionTile& tile, const std::byte* page, int count,
               const AttentionBuffers& buffers) {
  for (int j = 0; j < count; ++j) {
    const std::byte* record = page + j * tile.record_bytes;
    float* to = buffers.keys + j * buffers.key_stride;
    Widen(reinterpret_cast<const BF16*>(record), tile.latent_dim, to);
    Widen(reinterpret_cast<const BF16*>(record + tile.rope_offset_bytes), tile.rope_dim,
          to + tile.latent_dim);
  }
}

// scores[j][lane] ← scale · Σ query·key, in groups of keys; a group's surplus is not used.
template <int kVectors>
void Scores(const AttentionTile& tile, const AttentionBuffers& buffers, int lane, int keys) {
  const int width = tile.latent_dim + tile.rope_dim;
  for (int j = 0; j < keys; j += kGroup) {
    const float* rows[kGroup];
    for (int i = 0; i < kGroup; ++i) {
      rows[i] = buffers.keys + (j + i < keys ? j + i : keys - 1) * buffers.key_stride;
    }
    F16 acc[kGroup][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kGroup; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) acc[i][v] = Zero();
    }
    const float* query = buffers.queries + lane;
    for (int d = 0; d < width; ++d, query += kTileLanes) {
      F16 q[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) q[v] = Load(query + v * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kGroup; ++i) {
        const F16 key = Set1(rows[i][d]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) acc[i][v] = Fma(q[v], key, acc[i][v]);
      }
    }
    float* to = buffers.scores + int64_t{j} * kTileLanes + lane;
    for (int i = 0; i < kGroup; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        Store(to + i * kTileLanes + v * kLanes, acc[i][v] * Set1(tile.scale));
      }
    }
  }
}

inline F16 Rescale(F16 from, F16 to) {
  return Select(Equal(from, to), Set1(1.0f), ExpLanes(from - to));
}

// scores ← weights relative to the new maximum (0 where the key is not seen); updates m and l and
// returns what the sums so far are to be multiplied by.
F16 Weights(const AttentionTile& tile, const AttentionBuffers& buffers, int lane,
            const Block& block, float* partial) {
  float* scores = buffers.scores + lane;
  const int32_t* positions = tile.positions + lane;
  const F16 before = Load(partial + lane);
  F16 maximum = before;
  for (int j = 0; j < block.keys; ++j) {
    const F16 larger = Larger(Load(scores + j * kTileLanes), maximum);
    maximum =
        block.masked ? Select(AtLeast(positions, block.first_key + j), larger, maximum) : larger;
  }
  const F16 correction = Rescale(before, maximum);
  F16 sum = Load(partial + kTileLanes + lane) * correction;
  for (int j = 0; j < block.keys; ++j) {
    F16 weight = ExpLanes(Load(scores + j * kTileLanes) - maximum);
    if (block.masked) {
      weight = Select(AtLeast(positions, block.first_key + j), weight, Zero());
    }
    sum = sum + weight;
    Store(scores + j * kTileLanes, weight);
  }
  Store(partial + lane, maximum);
  Store(partial + kTileLanes + lane, sum);
  return correction;
}

// o ← o·correction + Σ weight·latent. A key that a lane does not see leaves the lane untouched,
// whatever its record holds.
template <int kVectors, bool kMasked>
void AddValues(const AttentionTile& tile, const AttentionBuffers& buffers, int lane,
               const Block& block, const F16 (&correction)[kVectors], float* partial) {
  float* values = partial + 2 * kTileLanes + lane;
  for (int d = 0; d < tile.latent_dim; d += kGroup) {
    const int count = tile.latent_dim - d < kGroup ? tile.latent_dim - d : kGroup;
    F16 acc[kGroup][kVectors];
    for (int i = 0; i < kGroup; ++i) {
      const int at = d + (i < count ? i : 0);
      for (int v = 0; v < kVectors; ++v) {
        acc[i][v] = Load(values + int64_t{at} * kTileLanes + v * kLanes) * correction[v];
      }
    }
    for (int j = 0; j < block.keys; ++j) {
      const float* key = buffers.keys + j * buffers.key_stride + d;
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const F16 weight = Load(buffers.scores + j * kTileLanes + lane + v * kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kGroup; ++i) {
          const F16 sum = Fma(weight, Set1(key[i]), acc[i][v]);
          acc[i][v] = kMasked
                          ? Select(AtLeast(tile.positions + lane + v * kLanes, block.first_key + j),
                                   sum, acc[i][v])
                          : sum;
        }
      }
    }
    for (int i = 0; i < count; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        Store(values + int64_t{d + i} * kTileLanes + v * kLanes, acc[i][v]);
      }
    }
  }
}

template <int kVectors>
void AddBlock(const AttentionTile& tile, const AttentionBuffers& buffers, int lane,
              const Block& block, float* partial) {
  Scores<kVectors>(tile, buffers, lane, block.keys);
  F16 correction[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    correction[v] = Weights(tile, buffers, lane + v * kLanes, block, partial);
  }
  if (block.masked) {
    AddValues<kVectors, true>(tile, buffers, lane, block, correction, partial);
  } else {
    AddValues<kVectors, false>(tile, buffers, lane, block, correction, partial);
  }
}

void AttentionSplit(const AttentionTile& tile, const std::byte* const* pages, int key_begin,
                    int key_end, std::byte* scratch, float* partial) {
  const AttentionBuffers buffers(tile, scratch);
  for (int i = 0; i < kTileLanes; ++i) partial[i] = kMinusInfinity;
  __builtin_memset(partial + kTileLanes, 0,
                   sizeof(float) * kTileLanes * (1 + int64_t{tile.latent_dim}));
  int lowest = tile.positions[0];
  for (int i = 1; i < tile.lanes; ++i) {
    lowest = tile.positions[i] < lowest ? tile.positions[i] : lowest;
  }
  const int vectors = (tile.lanes + kLanes - 1) / kLanes;
  for (int first = key_begin; first < key_end; first += kBlockKeys) {
    const int keys = key_end - first < kBlockKeys ? key_end - first : kBlockKeys;
    const Block block{first, keys, first + keys - 1 > lowest};
    WidenKeys(tile, pages[(first - key_begin) / kBlockKeys], keys, buffers);
    int v = 0;
    for (; v + kVectorsPerAttentionTile <= vectors; v += kVectorsPerAttentionTile) {
      AddBlock<kVectorsPerAttentionTile>(tile, buffers, v * kLanes, block, partial);
    }
    for (; v < vectors; ++v) AddBlock<1>(tile, buffers, v * kLanes, block, partial);
  }
}

void AttentionMerge(const AttentionTile& tile, int key_begin, const float* partial, float* total) {
  for (int lane = 0; lane < tile.lanes; lane += kLanes) {
    const M16 seen = AtLeast(tile.positions + lane, key_begin);
    const F16 m1 = Load(total + lane);
    const F16 m2 = Load(partial + lane);
    const F16 maximum = Larger(m2, m1);
    const F16 a = Rescale(m1, maximum);
    const F16 b = Rescale(m2, maximum);
    Store(total + lane, Select(seen, maximum, m1));
    for (int i = 0; i <= tile.latent_dim; ++i) {
      const int64_t at = int64_t{1 + i} * kTileLanes + lane;
      const F16 before = Load(total + at);
      const F16 after = Fma(before, a, Load(partial + at) * b);
      Store(total + at, Select(seen, after, before));
    }
  }
}

void AttentionFinish(const AttentionTile& tile, const float* total, BF16* const* out) {
  for (int lane = 0; lane < tile.lanes; lane += kLanes) {
    const int count = tile.lanes - lane < kLanes ? tile.lanes - lane : kLanes;
    const F16 factor = Set1(1.0f) / Load(total + kTileLanes + lane);
    for (int d = 0; d < tile.latent_dim; ++d) {
      BF16 rounded[kLanes];
      StoreBF16(rounded, Load(total + int64_t{2 + d} * kTileLanes + lane) * factor);
      for (int i = 0; i < count; ++i) out[lane + i][d] = rounded[i];
    }
  }
}

}  // namespace
}  // namespace epic::kernels
