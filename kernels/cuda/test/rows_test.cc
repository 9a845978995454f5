#include "kernels/cuda/rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cuda/test/harness.h"
#include "kernels/kv_record.h"
#include "kernels/math.h"
#include "kernels/number.h"
#include "kernels/reference/reference_backend.h"
#include "kernels/rope_table.h"

namespace epic::kernels::cuda {
namespace {

std::vector<float> Reals(Random& random, size_t count, float range) {
  std::vector<float> values(count);
  for (float& value : values) value = random.Real(range);
  return values;
}

// The order that rows.h states.
float Factor(const float* x, int columns, float eps) {
  float lanes[256] = {};
  for (int i = 0; i < columns; ++i) lanes[i % 256] = Fma(x[i], x[i], lanes[i % 256]);
  float total = 0;
  for (int warp = 0; warp < 8; ++warp) {
    float* sums = lanes + warp * 32;
    for (int width = 16; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
    }
    total = warp == 0 ? sums[0] : total + sums[0];
  }
  return 1.0f / std::sqrt(total / static_cast<float>(columns) + eps);
}

struct Quantised {
  std::vector<BF16> rounded;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

// Row r of `values` [rows, columns] into `out`, with its scales at `place` of `group`.
void Quantise(const float* values, int columns, int row, int group, int place, int stride,
              Quantised& out) {
  const int blocks = (columns + 127) / 128;
  for (int b = 0; b < blocks; ++b) {
    const int end = std::min(columns, (b + 1) * 128);
    float largest = 0;
    for (int i = b * 128; i < end; ++i) {
      out.rounded[row * columns + i] = ToBF16(values[i]);
      largest = std::max(largest, std::fabs(RoundToBF16(values[i])));
    }
    const float scale = std::max(largest, 1e-4f) / 448.0f;
    out.scales[(group * blocks + b) * stride + place] = scale;
    for (int i = b * 128; i < end; ++i) {
      out.codes[row * columns + i] = ToE4M3(RoundToBF16(values[i]) * (1.0f / scale));
    }
  }
}

Quantised Untouched(int rows, int columns, int scales) {
  return {std::vector<BF16>(rows * columns, {0x1234}), std::vector<uint8_t>(rows * columns, 0x55),
          std::vector<float>(scales, -7)};
}

struct Outputs {
  Buffer<BF16> rounded;
  Buffer<uint8_t> codes;
  Buffer<float> scales;
  explicit Outputs(const Quantised& q) : rounded(q.rounded), codes(q.codes), scales(q.scales) {}
  RowOutputs arguments(int stride) const {
    return {rounded.data(), codes.data(), scales.data(), stride};
  }
  void Check(const Quantised& expected) const {
    ExpectSame(rounded.Read(), expected.rounded, "rounded");
    ExpectSame(codes.Read(), expected.codes, "codes");
    ExpectSame(scales.Read(), expected.scales, "scales");
  }
};

EPIC_KERNEL_TEST(NormsHaveTheStatedBits) {
  Random random(1);
  for (const int columns : {1, 130, 512, 1000}) {
    constexpr int kRows = 3;
    const int stride = columns + 5;
    const std::vector<float> x = Reals(random, kRows * stride, 3);
    const std::vector<float> weight = Reals(random, columns, 2);
    const int blocks = (columns + 127) / 128;
    Quantised expected = Untouched(kRows, columns, blocks * 4);
    const Outputs out(expected);
    for (int r = 0; r < kRows; ++r) {
      const float factor = Factor(x.data() + r * stride, columns, 1e-6f);
      std::vector<float> y(columns);
      for (int i = 0; i < columns; ++i) y[i] = x[r * stride + i] * factor * weight[i];
      Quantise(y.data(), columns, r, 0, r, 4, expected);
    }
    const Buffer<float> x_in(x), weight_in(weight);
    RmsNorm({}, {.rows = kRows,
                 .columns = columns,
                 .x = x_in.data(),
                 .x_stride = stride,
                 .weight = weight_in.data(),
                 .eps = 1e-6f,
                 .out = out.arguments(4)});
    out.Check(expected);
  }
}

EPIC_KERNEL_TEST(TokensReadTheirRowsOfEitherTable) {
  Random random(4);
  constexpr int kColumns = 300, kVocab = 7;
  const std::vector<float> values = Reals(random, kVocab * kColumns, 1);
  const std::vector<int32_t> ids = {6, 0, 6, 3};
  std::vector<BF16> rounded;
  for (const float value : values) rounded.push_back(ToBF16(value));
  const Buffer<float> f32(values);
  const Buffer<BF16> bf16(rounded);
  const Buffer<int32_t> ids_in(ids);
  for (const DType type : {DType::kF32, DType::kBF16}) {
    std::vector<float> expected;
    for (size_t i = 0; i < ids.size() * kColumns; ++i) {
      const float value = values[ids[i / kColumns] * kColumns + i % kColumns];
      expected.push_back(type == DType::kF32 ? value : RoundToBF16(value));
    }
    const Buffer<float> out{std::vector<float>(expected.size(), -7)};
    EmbedRows({},
              {.rows = 4,
               .columns = kColumns,
               .type = type,
               .table = type == DType::kF32 ? static_cast<const void*>(f32.data()) : bf16.data(),
               .token_ids = ids_in.data(),
               .residual = out.data()});
    ExpectSame(out.Read(), expected, "residual");
  }
}

// The norm of the rows named, and the product of an `up` that begins later.
EPIC_KERNEL_TEST(RowsByIndexAndUpByOffset) {
  Random random(6);
  constexpr int kColumns = 144, kOffset = 256, kRows = 3;
  const std::vector<float> x = Reals(random, kRows * kColumns, 2),
                           weight = Reals(random, kColumns, 1);
  const std::vector<int32_t> which = {2, 0};
  const Buffer<float> x_in(x), weight_in(weight);
  const Buffer<int32_t> which_in(which);
  std::vector<BF16> expected;
  for (const int32_t row : which) {
    const float factor = Factor(x.data() + row * kColumns, kColumns, 1e-5f);
    for (int i = 0; i < kColumns; ++i) {
      expected.push_back(ToBF16(x[row * kColumns + i] * factor * weight[i]));
    }
  }
  const Buffer<BF16> normed{std::vector<BF16>(expected.size())};
  RmsNorm({}, {.rows = 2,
               .columns = kColumns,
               .x = x_in.data(),
               .x_stride = kColumns,
               .x_rows = which_in.data(),
               .weight = weight_in.data(),
               .eps = 1e-5f,
               .out = {.rounded = normed.data()}});
  ExpectSame(normed.Read(), expected, "normed");

  const std::vector<float> gate_up = Reals(random, kRows * (kOffset + kColumns), 2);
  const Buffer<float> gate_up_in(gate_up);
  expected.clear();
  for (int i = 0; i < kRows * kColumns; ++i) {
    const float* row = gate_up.data() + i / kColumns * (kOffset + kColumns) + i % kColumns;
    expected.push_back(ToBF16(Silu(row[0]) * row[kOffset]));
  }
  const Buffer<BF16> product{std::vector<BF16>(expected.size())};
  SwiGlu({}, {.rows = {.places = kRows},
              .columns = kColumns,
              .up_offset = kOffset,
              .gate_up = gate_up_in.data(),
              .out = {.rounded = product.data()}});
  ExpectSame(product.Read(), expected, "product");
}

// Whose sum has another order: within a BF16 ulp.
EPIC_KERNEL_TEST(NormsAgreeWithTheReferenceBackend) {
  Random random(2);
  const int columns = 700;
  std::vector<float> x = Reals(random, 2 * columns, 3);
  std::vector<float> weight = Reals(random, columns, 2);
  std::vector<BF16> rows(x.size());
  MakeReferenceBackend({})->Norm({DType::kF32, 1, columns, weight.data()}, 1e-6f,
                                 {DType::kF32, 2, columns, x.data()},
                                 {DType::kBF16, 2, columns, rows.data()});
  const Buffer<float> x_in(x), weight_in(weight);
  const Buffer<BF16> out{std::vector<BF16>(x.size())};
  RmsNorm({}, {.rows = 2,
               .columns = columns,
               .x = x_in.data(),
               .x_stride = columns,
               .weight = weight_in.data(),
               .eps = 1e-6f,
               .out = {.rounded = out.data()}});
  std::vector<float> actual, expected;
  for (const BF16 value : out.Read()) actual.push_back(ToFloat(value));
  for (const BF16 value : rows) expected.push_back(ToFloat(value));
  ExpectNear(actual, expected, 0x1p-7f, "norm");
}

EPIC_KERNEL_TEST(QuantisedRowsOfMaskedGroups) {
  Random random(3);
  constexpr int kGroups = 3, kPlaces = 4, kColumns = 200;
  const std::vector<int32_t> group_rows = {2, 0, 4};
  std::vector<BF16> x;
  for (const float value : Reals(random, kGroups * kPlaces * kColumns, 5)) {
    x.push_back(ToBF16(value));
  }
  std::fill_n(x.begin(), 100, BF16{0});  // small and zero blocks
  std::fill_n(x.begin() + 128, 72, BF16{0});
  Quantised expected = Untouched(kGroups * kPlaces, kColumns, kGroups * 2 * 8);
  const Outputs out(expected);
  for (int r = 0; r < kGroups * kPlaces; ++r) {
    if (r % kPlaces >= group_rows[r / kPlaces]) continue;
    std::vector<float> values;
    for (int i = 0; i < kColumns; ++i) values.push_back(ToFloat(x[r * kColumns + i]));
    Quantise(values.data(), kColumns, r, r / kPlaces, r % kPlaces, 8, expected);
  }
  const Buffer<BF16> x_in(x);
  const Buffer<int32_t> rows_in(group_rows);
  QuantiseRows({}, {.rows = {kGroups, kPlaces, rows_in.data()},
                    .columns = kColumns,
                    .x = x_in.data(),
                    .out = out.arguments(8)});
  out.Check(expected);
}

EPIC_KERNEL_TEST(SwiGluProductsAreRoundedThenQuantised) {
  Random random(4);
  constexpr int kRows = 5, kColumns = 176;
  const std::vector<float> gate_up = Reals(random, kRows * 2 * kColumns, 6);
  Quantised expected = Untouched(kRows, kColumns, 2 * 8);
  const Outputs out(expected);
  for (int r = 0; r < kRows; ++r) {
    const float* gate = gate_up.data() + r * 2 * kColumns;
    std::vector<float> values;
    for (int i = 0; i < kColumns; ++i) values.push_back(Silu(gate[i]) * gate[kColumns + i]);
    Quantise(values.data(), kColumns, r, 0, r, 8, expected);
  }
  const Buffer<float> in(gate_up);
  SwiGlu({}, {.rows = {.places = kRows},
              .columns = kColumns,
              .gate_up = in.data(),
              .out = out.arguments(8)});
  out.Check(expected);
}

RopeTable Table(int rows, int rope_dim) {
  StepPlan plan;
  for (int r = 0; r < rows; ++r) plan.token_ids.push_back(0), plan.positions.push_back(7 * r + 1);
  Rope rope;
  for (int i = 0; i < rope_dim / 2; ++i) rope.inverse_frequency.push_back(1.0 / (1 + i));
  rope.magnitude = 1.25;
  RopeTable table;
  table.Fill(plan, rope);
  return table;
}

// As kernels/reference rotates.
void Rotate(const RopeTable& table, int row, bool interleaved, float* x) {
  for (int i = 0; i < table.pairs; ++i) {
    const float c = table.cos[row * table.pairs + i];
    const float s = table.sin[row * table.pairs + i];
    float& first = x[interleaved ? 2 * i : i];
    float& second = x[interleaved ? 2 * i + 1 : i + table.pairs];
    const float rotated = Fma(first, c, -(second * s));
    second = Fma(second, c, first * s);
    first = rotated;
  }
}

EPIC_KERNEL_TEST(QueriesAreSplitAndRotated) {
  Random random(5);
  constexpr int kRows = 3, kHeads = 5, kNope = 24, kRope = 16, kLatent = 40;
  constexpr int kStride = kHeads * (kNope + kRope) + 7;
  const std::vector<float> q = Reals(random, kRows * kStride, 2);
  const RopeTable table = Table(kRows, kRope);
  for (const bool interleaved : {true, false}) {
    std::vector<BF16> nope, query(kRows * kHeads * (kLatent + kRope), {0x1234});
    const std::vector<BF16> before = query;
    for (int v = 0; v < kRows * kHeads; ++v) {
      const auto at = q.begin() + v / kHeads * kStride + v % kHeads * (kNope + kRope);
      std::vector<float> head(at, at + kNope + kRope);
      Rotate(table, v / kHeads, interleaved, head.data() + kNope);
      for (int i = 0; i < kNope; ++i) nope.push_back(ToBF16(head[i]));
      for (int i = 0; i < kRope; ++i) {
        query[v * (kLatent + kRope) + kLatent + i] = ToBF16(head[kNope + i]);
      }
    }
    const Buffer<float> q_in(q), cos(table.cos), sin(table.sin);
    const Buffer<BF16> nope_out(std::vector<BF16>(nope.size())), query_out(before);
    SplitQuery({}, {.rows = kRows,
                    .heads = kHeads,
                    .nope_dim = kNope,
                    .rope_dim = kRope,
                    .latent_dim = kLatent,
                    .q = q_in.data(),
                    .q_stride = kStride,
                    .rope = {cos.data(), sin.data(), interleaved},
                    .nope = nope_out.data(),
                    .query = query_out.data()});
    ExpectSame(nope_out.Read(), nope, "nope");
    ExpectSame(query_out.Read(), query, "query");
  }
}

EPIC_KERNEL_TEST(RecordsAreNormedRotatedAndPadded) {
  Random random(6);
  constexpr int kRows = 5, kLatent = 36, kRope = 12;
  constexpr int kStride = kLatent + kRope + 9;
  const KvLayout layout = {.latent_dim = kLatent, .rope_dim = kRope};
  const int record = static_cast<int>(layout.record_bytes() / 2);
  const std::vector<float> kv = Reals(random, kRows * kStride, 2);
  const std::vector<float> weight = Reals(random, kLatent, 2);
  const std::vector<int32_t> index = {130, 5, 64, -1, 0};
  const RopeTable table = Table(kRows, kRope);
  std::vector<BF16> slab(3 * 64 * record, {0x1234});
  const Buffer<BF16> slab_out(slab);
  for (int r = 0; r < kRows; ++r) {
    if (index[r] < 0) continue;
    std::vector<float> row(kv.begin() + r * kStride, kv.begin() + r * kStride + kLatent + kRope);
    const float factor = Factor(row.data(), kLatent, 1e-5f);
    Rotate(table, r, true, row.data() + kLatent);
    BF16* to = slab.data() + index[r] * record;
    std::fill_n(to, record, BF16{0});
    for (int i = 0; i < kLatent; ++i) to[i] = ToBF16(row[i] * factor * weight[i]);
    for (int i = 0; i < kRope; ++i)
      to[layout.rope_offset_bytes() / 2 + i] = ToBF16(row[kLatent + i]);
  }
  const Buffer<float> kv_in(kv), weight_in(weight), cos(table.cos), sin(table.sin);
  const Buffer<int32_t> index_in(index);
  WriteRecords({}, {.rows = kRows,
                    .layout = layout,
                    .kv = kv_in.data(),
                    .kv_stride = kStride,
                    .weight = weight_in.data(),
                    .eps = 1e-5f,
                    .rope = {cos.data(), sin.data(), true},
                    .slab = reinterpret_cast<std::byte*>(slab_out.data()),
                    .record_index = index_in.data()});
  ExpectSame(slab_out.Read(), slab, "slab");
}

EPIC_KERNEL_TEST(Fp8RecordsHaveTheBytesOfTheirDefinition) {
  Random random(7);
  constexpr int kRows = 3, kLatent = 200, kRope = 12;
  const KvLayout layout = {.latent_dim = kLatent, .rope_dim = kRope, .type = KvType::kFP8};
  const int64_t bytes = layout.record_bytes();
  std::vector<float> kv = Reals(random, kRows * (kLatent + kRope), 2);
  const std::vector<float> weight = Reals(random, kLatent, 2);
  kv[1 * (kLatent + kRope) + 3] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<int32_t> index = {70, 5, 64};
  const RopeTable table = Table(kRows, kRope);
  std::vector<std::byte> slab(2 * 64 * bytes, std::byte{0x55});
  const Buffer<std::byte> slab_out(slab);
  for (int r = 0; r < kRows; ++r) {
    std::vector<float> row(kv.begin() + r * (kLatent + kRope),
                           kv.begin() + (r + 1) * (kLatent + kRope));
    const float factor = Factor(row.data(), kLatent, 1e-6f);
    Rotate(table, r, true, row.data() + kLatent);
    std::vector<BF16> latent;
    for (int i = 0; i < kLatent; ++i) latent.push_back(ToBF16(row[i] * factor * weight[i]));
    std::byte* to = slab.data() + index[r] * bytes;
    std::fill_n(to, bytes, std::byte{0});
    WriteLatent(layout, latent.data(), to);
    for (int i = 0; i < kRope; ++i) {
      const BF16 value = ToBF16(row[kLatent + i]);
      std::memcpy(to + layout.rope_offset_bytes() + 2 * i, &value, 2);
    }
  }
  const Buffer<float> kv_in(kv), weight_in(weight), cos(table.cos), sin(table.sin);
  const Buffer<int32_t> index_in(index);
  WriteRecords({}, {.rows = kRows,
                    .layout = layout,
                    .kv = kv_in.data(),
                    .kv_stride = kLatent + kRope,
                    .weight = weight_in.data(),
                    .eps = 1e-6f,
                    .rope = {cos.data(), sin.data(), true},
                    .slab = slab_out.data(),
                    .record_index = index_in.data()});
  ExpectSame(slab_out.Read(), slab, "slab");
}

}  // namespace
}  // namespace epic::kernels::cuda
