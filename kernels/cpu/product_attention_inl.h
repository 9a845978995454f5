// The steps of attention by products over the lanes of the including file: everything of a split
// that is no product (product_attention.h).
#pragma once

#include "kernels/cpu/vector_attention_inl.h"

namespace epic::kernels {
namespace {

constexpr int kTileKeys = 32;

void KeyRow(const AttentionTile& tile, const std::byte* record, BF16* to) {
  const int width = tile.latent_dim + tile.rope_dim;
  const auto* codes = reinterpret_cast<const char*>(record);
  const auto* scales = reinterpret_cast<const float*>(record + tile.scales_offset_bytes);
  if (tile.fp8) {
    // The surplus of the last 16 values means nothing: the rope part or zeros are written over it.
    for (int i = 0; i < tile.latent_dim; i += 16) {
      // Code · scale is exact in BF16 (kernels/kv_record.h), so nothing is rounded here.
      StoreExactBF16(to + i, LoadE4M3(codes + i) * Set1(256.0f * scales[i / 128]));
    }
  } else {
    __builtin_memcpy(to, record, 2 * tile.latent_dim);
  }
  __builtin_memcpy(to + tile.latent_dim, record + tile.rope_offset_bytes, 2 * tile.rope_dim);
  // Tiles read whole multiples of 32 values, and 0 · NaN is NaN.
  __builtin_memset(to + width, 0, 2 * ((width + 31) / 32 * 32 - width));
}

// Never reads past `count`: a record's end may be the end of its memory.
inline __m256i LoadValues(const BF16* from, int64_t count) {
  if (from == nullptr) return _mm256_setzero_si256();
  if (count >= 16) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  alignas(32) BF16 some[16] = {};
  __builtin_memcpy(some, from, 2 * count);
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(some));
}

// Pairs of keys, as packed weights of BF16 have pairs of inputs (tile_layout.h).
void Interleave(const BF16* even, const BF16* odd, int64_t count, std::byte* to,
                int64_t panel_bytes) {
  for (int64_t i = 0; i < count; i += 16, to += panel_bytes) {
    const __m256i a = LoadValues(even == nullptr ? nullptr : even + i, count - i);
    const __m256i b = LoadValues(odd == nullptr ? nullptr : odd + i, count - i);
    // unpack works in halves of 128 bits: the permutations below put the pairs in order.
    const __m256i low = _mm256_unpacklo_epi16(a, b);
    const __m256i high = _mm256_unpackhi_epi16(a, b);
    auto* pairs = reinterpret_cast<__m256i*>(to);
    _mm256_storeu_si256(pairs, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256(pairs + 1, _mm256_permute2x128_si256(low, high, 0x31));
  }
}

// to[j][i] ← from[i][j] of 8 × 8 values of two bytes.
inline void TransposeWords(const std::byte* from, int64_t from_bytes, std::byte* to,
                           int64_t to_bytes) {
  // Three rounds interleave words, pairs of words and fours.
  __m128i in[8], pairs[8], fours[8];
  for (int i = 0; i < 8; ++i) {
    in[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * from_bytes));
  }
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm_unpacklo_epi16(in[2 * i], in[2 * i + 1]);
    pairs[2 * i + 1] = _mm_unpackhi_epi16(in[2 * i], in[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    for (int half = 0; half < 2; ++half) {
      const __m128i a = pairs[4 * i + half], b = pairs[4 * i + 2 + half];
      fours[4 * i + 2 * half] = _mm_unpacklo_epi32(a, b);
      fours[4 * i + 2 * half + 1] = _mm_unpackhi_epi32(a, b);
    }
  }
  for (int j = 0; j < 4; ++j) {
    auto* row = reinterpret_cast<__m128i*>(to + 2 * j * to_bytes);
    auto* next = reinterpret_cast<__m128i*>(to + (2 * j + 1) * to_bytes);
    _mm_storeu_si128(row, _mm_unpacklo_epi64(fours[j], fours[4 + j]));
    _mm_storeu_si128(next, _mm_unpackhi_epi64(fours[j], fours[4 + j]));
  }
}

// The part of KeyWeights for 16 lanes from `lane` on.
void WeightsOfLanes(const AttentionTile& tile, int lane, int key_begin, int keys,
                    const float* scores, std::byte* rows, int64_t row_bytes, float* partial) {
  const int64_t lanes = tile.stride;
  const int32_t* positions = tile.positions + lane;
  const F16 scale = Set1(tile.scale);
  const auto score = [=](int j) { return Load(scores + j * lanes + lane) * scale; };
  // Keys that every lane sees need no mask: of a decode step's keys these are all.
  int seen_by_all = positions[0] - key_begin + 1;  // keys before it
  for (int i = 1; i < kLanes; ++i) {
    const int seen = positions[i] - key_begin + 1;
    seen_by_all = seen < seen_by_all ? seen : seen_by_all;
  }
  // The split has one maximum, so nothing is rescaled within it. A NaN does not become the maximum,
  // and its weight is NaN.
  F16 maximum = Set1(kMinusInfinity);
  for (int j = 0; j < keys; ++j) {
    const F16 larger = Larger(score(j), maximum);
    maximum = j < seen_by_all ? larger : Select(AtLeast(positions, key_begin + j), larger, maximum);
  }
  F16 sum = Zero();
  for (int first = 0; first < keys; first += kTileKeys) {
    // Keys past the split's end stay 0: the product reads whole tiles of 32.
    alignas(64) BF16 weights[kTileKeys][kLanes] = {};
    for (int i = 0; i < kTileKeys && first + i < keys; ++i) {
      const int j = first + i;
      F16 weight = ExpLanes(score(j) - maximum);
      if (j >= seen_by_all) {
        weight = Select(AtLeast(positions, key_begin + j), weight, Zero());
      }
      // The weight is rounded once; the sum takes the rounded weights, as the product with the
      // values does.
      StoreBF16(weights[i], weight);
      sum = sum + LoadBF16(weights[i]);
    }
    for (int i = 0; i < kTileKeys; i += 8) {
      for (int of_lane = 0; of_lane < kLanes; of_lane += 8) {
        TransposeWords(reinterpret_cast<const std::byte*>(&weights[i][of_lane]), sizeof(weights[0]),
                       rows + of_lane * row_bytes + 2 * (first + i), row_bytes);
      }
    }
  }
  // AttentionPartialFloats has maxima, sums, then values; the caller adds the values.
  Store(partial + lane, maximum);
  Store(partial + lanes + lane, sum);
}

void KeyWeights(const AttentionTile& tile, int key_begin, int keys, const float* scores,
                std::byte* rows, int64_t row_bytes, float* partial) {
  for (int lane = 0; lane < tile.stride; lane += kLanes) {
    WeightsOfLanes(tile, lane, key_begin, keys, scores, rows + lane * row_bytes, row_bytes,
                   partial);
  }
}

inline void TransposeFloats(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  // This does what TransposeWords does, with floats: single floats, pairs, then halves of a
  // register.
  __m256 in[8], pairs[8], fours[8];
  for (int i = 0; i < 8; ++i) in[i] = _mm256_loadu_ps(from + i * from_stride);
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(in[2 * i], in[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(in[2 * i], in[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    for (int half = 0; half < 2; ++half) {
      const __m256d a = _mm256_castps_pd(pairs[4 * i + half]);
      const __m256d b = _mm256_castps_pd(pairs[4 * i + 2 + half]);
      fours[4 * i + 2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
      fours[4 * i + 2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    }
  }
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_ps(to + j * to_stride, _mm256_permute2f128_ps(fours[j], fours[4 + j], 0x20));
    _mm256_storeu_ps(to + (4 + j) * to_stride,
                     _mm256_permute2f128_ps(fours[j], fours[4 + j], 0x31));
  }
}

void Transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to) {
  for (int64_t column = 0; column < columns; column += 8) {
    for (int64_t row = 0; row < rows; row += 8) {
      // Squares of 8 by 8 are read and written in whole vectors.
      TransposeFloats(from + row * from_stride + column, from_stride, to + column * rows + row,
                      rows);
    }
  }
}

}  // namespace
}  // namespace epic::kernels
