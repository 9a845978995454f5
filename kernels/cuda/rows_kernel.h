// The kernels of rows.h: a block of 256 threads per row; a warp per 128 columns, four to a lane.
#pragma once

#include <cmath>

#include "kernels/cuda/device/device.h"
#include "kernels/cuda/rows.h"
#include "kernels/kv_record.h"

namespace epic::kernels::cuda {

inline constexpr int kRowThreads = 256;
inline constexpr int kRowWarps = kRowThreads / 32;
inline constexpr int kLaneColumns = kScaleBlock / 32;

// The result is the same in all threads of the block. It uses kRowWarps floats of shared memory at
// 0. The order of sums, which rows.h states, is part of the numeric profile.
EPIC_DEVICE float SumOfSquares(const float* x, int columns) {
  float sum = 0;
  for (int i = ThreadIndex(); i < columns; i += kRowThreads) sum = Fma(x[i], x[i], sum);
  for (int mask = 16; mask > 0; mask /= 2) sum += ShuffleXor(sum, mask);
  // One barrier is enough: the sums are written once and never overwritten.
  const auto sums = SharedAt<float>(0, kRowWarps);
  if (LaneIndex() == 0) sums.Store(WarpIndex(), sum);
  SyncBlock();
  float total = sums.Load(0);
  for (int warp = 1; warp < kRowWarps; ++warp) total += sums.Load(warp);
  return total;
}

EPIC_DEVICE float NormFactor(const float* x, int columns, float eps) {
  const float mean = SumOfSquares(x, columns) / static_cast<float>(columns);
  // Both operations are rounded by IEEE 754, so the host gives the same bits.
  return 1.0f / sqrtf(mean + eps);
}

// Four columns of a lane of one block of 128, by a whole warp, to row `row` of `out`; the block's
// scale goes to scales[scale_at]. Codes are made from the rounded values, as if a BF16 row had been
// quantised later: so both ways give the same bits.
EPIC_DEVICE void WriteColumns(const RowOutputs& out, int64_t row, int columns, int block,
                              int64_t scale_at, const float (&values)[kLaneColumns]) {
  const int first = block * kScaleBlock + LaneIndex() * kLaneColumns;
  const int64_t at = row * columns + first;
  float rounded[kLaneColumns];
  float largest = 0;
  EPIC_UNROLL
  for (int i = 0; i < kLaneColumns; ++i) {
    const BF16 value = ToBF16(values[i]);
    rounded[i] = ToFloat(value);
    const float magnitude = rounded[i] < 0 ? -rounded[i] : rounded[i];
    largest = magnitude > largest ? magnitude : largest;
    if (out.rounded != nullptr && first + i < columns) out.rounded[at + i] = value;
  }
  // The argument is the same for all lanes, so none is missed by the shuffles below.
  if (out.codes == nullptr) return;
  for (int mask = 16; mask > 0; mask /= 2) {
    const float other = ShuffleXor(largest, mask);
    largest = other > largest ? other : largest;
  }
  // The floor keeps the scale of a row of zeros from being 0 (docs/numerics.md).
  const float scale = (largest > 1e-4f ? largest : 1e-4f) / 448.0f;
  const float inverse = 1.0f / scale;
  EPIC_UNROLL
  for (int i = 0; i < kLaneColumns; i += 2) {
    const uint16_t pair = ToE4M3Pair(rounded[i] * inverse, rounded[i + 1] * inverse);
    if (first + i < columns) out.codes[at + i] = static_cast<uint8_t>(pair);
    if (first + i + 1 < columns) out.codes[at + i + 1] = static_cast<uint8_t>(pair >> 8);
  }
  if (LaneIndex() == 0) out.scales[scale_at] = scale;
}

// Calls value(column) for all columns of a row and writes the results. `group` and `place` say
// where the row's scales lie.
template <typename Value>
EPIC_DEVICE void WriteRow(const RowOutputs& out, int64_t row, int columns, int group, int place,
                          const Value& value) {
  const int blocks = (columns + kScaleBlock - 1) / kScaleBlock;
  for (int block = WarpIndex(); block < blocks; block += kRowWarps) {
    float values[kLaneColumns];
    EPIC_UNROLL
    for (int i = 0; i < kLaneColumns; ++i) {
      const int column = block * kScaleBlock + LaneIndex() * kLaneColumns + i;
      // Columns past the row are zeros, which cannot raise the largest magnitude.
      values[i] = column < columns ? value(column) : 0.0f;
    }
    const int64_t scale_at = (int64_t{group} * blocks + block) * out.scale_stride + place;
    WriteColumns(out, row, columns, block, scale_at, values);
  }
}

struct RmsNormKernel {
  using Params = NormArguments;
  static constexpr int kThreads = kRowThreads;
  static constexpr int kSharedBytes = kRowWarps * 4;
  static constexpr int kBlocksPerSm = 4;
  EPIC_DEVICE static void Run(const Params& a) {
    const int row = BlockIndex();
    const float* x = a.x + int64_t{a.x_rows == nullptr ? row : a.x_rows[row]} * a.x_stride;
    const float factor = NormFactor(x, a.columns, a.eps);
    WriteRow(a.out, row, a.columns, 0, row,
             [&](int column) { return x[column] * factor * a.weight[column]; });
  }
};

// The group and place of a block's row. Returns false where no row took the place.
EPIC_DEVICE bool PlaceOf(const RowPlaces& rows, int block, int& group, int& place) {
  group = block / rows.places;
  place = block % rows.places;
  return rows.group_rows == nullptr || place < rows.group_rows[group];
}

struct QuantiseKernel {
  using Params = QuantiseArguments;
  static constexpr int kThreads = kRowThreads;
  static constexpr int kSharedBytes = 0;
  static constexpr int kBlocksPerSm = 4;
  EPIC_DEVICE static void Run(const Params& a) {
    int group, place;
    // Places that no row took are left as they are: products pass over them.
    if (!PlaceOf(a.rows, BlockIndex(), group, place)) return;
    const BF16* x = a.x + int64_t{BlockIndex()} * a.columns;
    WriteRow(a.out, BlockIndex(), a.columns, group, place,
             [&](int column) { return ToFloat(x[column]); });
  }
};

// Up stands behind gate in the same product's row.
struct SwiGluKernel {
  using Params = SwiGluArguments;
  static constexpr int kThreads = kRowThreads;
  static constexpr int kSharedBytes = 0;
  static constexpr int kBlocksPerSm = 4;
  EPIC_DEVICE static void Run(const Params& a) {
    int group, place;
    if (!PlaceOf(a.rows, BlockIndex(), group, place)) return;
    const int up_offset = a.up_offset == 0 ? a.columns : a.up_offset;
    const float* gate = a.gate_up + int64_t{BlockIndex()} * (up_offset + a.columns);
    const float* up = gate + up_offset;
    WriteRow(a.out, BlockIndex(), a.columns, group, place,
             [&](int column) { return Silu(gate[column]) * up[column]; });
  }
};

struct EmbedKernel {
  using Params = EmbedArguments;
  static constexpr int kThreads = kRowThreads;
  static constexpr int kSharedBytes = 0;
  static constexpr int kBlocksPerSm = 4;
  EPIC_DEVICE static void Run(const Params& a) {
    const int64_t from = int64_t{a.token_ids[BlockIndex()]} * a.columns;
    float* to = a.residual + int64_t{BlockIndex()} * a.columns;
    // The residual is FP32, and either type widens to it exactly.
    const bool bf16 = a.type == DType::kBF16;
    for (int i = ThreadIndex(); i < a.columns; i += kThreads) {
      to[i] = bf16 ? ToFloat(static_cast<const BF16*>(a.table)[from + i])
                   : static_cast<const float*>(a.table)[from + i];
    }
  }
};

// Value i of the rotated x[rope_dim] of a row.
EPIC_DEVICE float Rotated(const RopeTables& rope, int row, int rope_dim, const float* x, int i) {
  const int pairs = rope_dim / 2;
  const int pair = rope.interleaved ? i / 2 : i % pairs;
  const bool second = rope.interleaved ? i % 2 != 0 : i >= pairs;
  const float c = rope.cos[int64_t{row} * pairs + pair];
  const float s = rope.sin[int64_t{row} * pairs + pair];
  const float a = x[rope.interleaved ? 2 * pair : pair];
  const float b = x[rope.interleaved ? 2 * pair + 1 : pair + pairs];
  // The order is that of the oracle's Rotate (kernels/reference/rows.cc).
  return second ? Fma(b, c, a * s) : Fma(a, c, -(b * s));
}

// A thread per value of q, whatever part of a head it is of.
struct QueryKernel {
  using Params = QueryArguments;
  static constexpr int kThreads = kRowThreads;
  static constexpr int kSharedBytes = 0;
  static constexpr int kBlocksPerSm = 4;
  EPIC_DEVICE static void Run(const Params& a) {
    const int row = BlockIndex();
    const int width = a.nope_dim + a.rope_dim;
    const float* q = a.q + int64_t{row} * a.q_stride;
    for (int i = ThreadIndex(); i < a.heads * width; i += kThreads) {
      const int head = i / width;
      const int at = i % width;
      const int64_t vector = int64_t{row} * a.heads + head;
      if (at < a.nope_dim) {
        a.nope[vector * a.nope_dim + at] = ToBF16(q[i]);
      } else {
        const float value =
            Rotated(a.rope, row, a.rope_dim, q + head * width + a.nope_dim, at - a.nope_dim);
        a.query[vector * (a.latent_dim + a.rope_dim) + a.latent_dim + at - a.nope_dim] =
            ToBF16(value);
      }
    }
  }
};

// A row that fills a bucket has no record; padding is written, so that pages have the same bytes on
// every device.
struct RecordKernel {
  using Params = RecordArguments;
  static constexpr int kThreads = kRowThreads;
  static constexpr int kSharedBytes = kRowWarps * 4;
  static constexpr int kBlocksPerSm = 4;
  EPIC_DEVICE static void Run(const Params& a) {
    const int row = BlockIndex();
    const int record_index = a.record_index[row];
    if (record_index < 0) return;
    const int latent = a.layout.latent_dim;
    const int rope_dim = a.layout.rope_dim;
    const float* kv = a.kv + int64_t{row} * a.kv_stride;
    const float factor = NormFactor(kv, latent, a.eps);
    std::byte* record = a.slab + record_index * a.layout.record_bytes();
    auto* rope = reinterpret_cast<BF16*>(record + a.layout.rope_offset_bytes());
    // Each part of a record is padded to 16 bytes.
    const int rope_places = (rope_dim + 7) / 8 * 8;
    for (int i = ThreadIndex(); i < rope_places; i += kThreads) {
      rope[i] = ToBF16(i < rope_dim ? Rotated(a.rope, row, rope_dim, kv + latent, i) : 0.0f);
    }
    const auto value = [&](int i) { return ToBF16(kv[i] * factor * a.weight[i]); };
    if (a.layout.type == KvType::kFP8) {
      WriteFp8(a.layout, record, value);
      return;
    }
    auto* to = reinterpret_cast<BF16*>(record);
    for (int i = ThreadIndex(); i < (latent + 7) / 8 * 8; i += kThreads) {
      to[i] = i < latent ? value(i) : BF16{0};
    }
  }

  // A warp per block of 128, which shares a scale: kernels/kv_record.h, in parallel. Magnitudes are
  // compared as bits: NaN is then larger than every number and makes the scale NaN.
  template <typename Value>
  EPIC_DEVICE static void WriteFp8(const KvLayout& layout, std::byte* record, const Value& value) {
    auto* codes = reinterpret_cast<uint8_t*>(record);
    auto* scales = reinterpret_cast<float*>(record + layout.scales_offset_bytes());
    const int latent = layout.latent_dim;
    for (int b = WarpIndex(); b < layout.scale_count(); b += kRowWarps) {
      const int first = b * kKvScaleBlock + LaneIndex() * kLaneColumns;
      BF16 values[kLaneColumns];
      int largest = 0;
      EPIC_UNROLL
      for (int i = 0; i < kLaneColumns; ++i) {
        values[i] = first + i < latent ? value(first + i) : BF16{0};
        const int magnitude = values[i].bits & 0x7fff;
        largest = magnitude > largest ? magnitude : largest;
      }
      for (int mask = 16; mask > 0; mask /= 2) {
        const int other = ShuffleXor(largest, mask);
        largest = other > largest ? other : largest;
      }
      const float scale = KvScale(ToFloat(BF16{static_cast<uint16_t>(largest)}));
      // The scale NaN makes all values of the block NaN, whatever the codes say: they are zeros
      // then, so that pages have the same bytes on every device.
      const bool sound = scale == scale;
      const float inverse = sound ? 1.0f / scale : 0.0f;
      EPIC_UNROLL
      for (int i = 0; i < kLaneColumns; ++i) {
        if (first + i >= latent) continue;
        codes[first + i] = sound ? ToE4M3(ToFloat(values[i]) * inverse) : uint8_t{0};
      }
      if (LaneIndex() == 0) scales[b] = scale;
    }
    const int code_places = static_cast<int>(layout.scales_offset_bytes());
    for (int i = latent + ThreadIndex(); i < code_places; i += kThreads) codes[i] = 0;
    const int scale_places = static_cast<int>(layout.rope_offset_bytes() - code_places) / 4;
    for (int i = layout.scale_count() + ThreadIndex(); i < scale_places; i += kThreads) {
      scales[i] = 0;
    }
  }
};

}  // namespace epic::kernels::cuda
