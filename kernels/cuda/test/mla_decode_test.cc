#include "kernels/cuda/mla_decode.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/cuda/test/harness.h"
#include "kernels/kv_record.h"
#include "kernels/number.h"
#include "kernels/reference/reference_backend.h"

namespace epic::kernels::cuda {
namespace {

constexpr float kScale = 0.1f;
// Outputs are BF16 averages of values below 1; weights are rounded to BF16 on the way.
constexpr float kReferenceTolerance = 0.008f;

// Sequences with random pages, records and queries. Records past a sequence's end are NaN.
struct Batch {
  int heads, latent, width;
  StepPlan plan;
  KvLayout layout;
  int page_count = 0;
  std::vector<BF16> slab, query;
  std::vector<uint8_t> codes = {0};  // the slab of FP8 records

  // Each sequence: tokens before the step, rows of the step.
  Batch(int heads, int latent, const std::vector<std::pair<int, int>>& sequences, uint64_t seed)
      : heads(heads),
        latent(latent),
        width(latent + kMlaRopeDim),
        layout{.latent_dim = latent, .rope_dim = kMlaRopeDim} {
    Random random(seed);
    for (const auto& [before, rows] : sequences) page_count += (before + rows + 63) / 64;
    std::vector<int32_t> free_pages(page_count);
    for (int i = 0; i < page_count; ++i) free_pages[i] = i;
    for (int i = page_count - 1; i > 0; --i)
      std::swap(free_pages[i], free_pages[random.Integer(0, i)]);
    slab.resize(int64_t{page_count} * kPageTokens * width, {0x7fc0});
    for (const auto& [before, rows] : sequences) AddSequence(before, rows, free_pages, random);
    query.resize(int64_t{plan.rows()} * heads * width);
    for (BF16& value : query) value = ToBF16(random.Real(2));
  }

  void AddSequence(int before, int rows, std::vector<int32_t>& free_pages, Random& random) {
    const SequenceRows sequence = {.first_row = plan.rows(),
                                   .row_count = rows,
                                   .first_position = before,
                                   .first_page = static_cast<int32_t>(plan.pages.size())};
    for (int row = 0; row < rows; ++row) {
      plan.token_ids.push_back(0);
      plan.positions.push_back(before + row);
      plan.row_sequence.push_back(static_cast<int32_t>(plan.sequences.size()));
    }
    for (int key = 0; key < before + rows; ++key) {
      if (key % 64 == 0) {
        plan.pages.push_back(free_pages.back());
        free_pages.pop_back();
      }
      BF16* record = slab.data() + (int64_t{plan.pages.back()} * 64 + key % 64) * width;
      for (int i = 0; i < width; ++i) record[i] = ToBF16(random.Real(1));
    }
    plan.sequences.push_back(sequence);
  }

  // FP8 records of about these values, which then become what they stand for.
  void MakeFp8() {
    layout.type = KvType::kFP8;
    const int64_t bytes = layout.record_bytes();
    codes.assign(page_count * kPageTokens * bytes, 0xff);
    for (int64_t r = 0; r < int64_t{page_count} * kPageTokens; ++r) {
      BF16* values = slab.data() + r * width;
      auto* to = reinterpret_cast<std::byte*>(codes.data()) + r * bytes;
      if (std::isnan(ToFloat(values[0]))) continue;
      WriteLatent(layout, values, to);
      for (int i = 0; i < latent; ++i) values[i] = ToBF16(ReadLatent(layout, to, i));
      std::memcpy(to + layout.rope_offset_bytes(), values + latent, 2 * kMlaRopeDim);
    }
  }

  const BF16* Record(int row, int key) const {
    const SequenceRows& sequence = plan.sequences[plan.row_sequence[row]];
    return slab.data() +
           (int64_t{plan.pages[sequence.first_page + key / 64]} * 64 + key % 64) * width;
  }
};

// (maximum, sum, values) of one split of one query, in the kernel's order.
struct Partial {
  float maximum = -std::numeric_limits<float>::infinity();
  std::vector<float> values;
  float sum = 0;
};

constexpr float kExponentScale = kScale * 1.44269504f;

// As the host emulates it.
float HostExp2(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

float Rescale(float from, float to) {
  return from == to ? 1.0f : HostExp2((from - to) * kExponentScale);
}

Partial Split(const Batch& batch, int row, int head, int begin, int end) {
  const BF16* q = batch.query.data() + (int64_t{row} * batch.heads + head) * batch.width;
  Partial out;
  out.values.resize(batch.latent);
  float sums[2][4] = {};  // per half of the keys, per thread of four
  for (int block = begin; block < end; block += 64) {
    const int count = std::min(64, end - block);
    std::vector<float> scores(count);
    float maximum = out.maximum;
    for (int j = 0; j < count; ++j) {
      const BF16* record = batch.Record(row, block + j);
      for (int i = 0; i < batch.width; ++i) {
        scores[j] = Fma(ToFloat(q[i]), ToFloat(record[i]), scores[j]);
      }
      maximum = std::max(maximum, scores[j]);
    }
    const float correction = Rescale(out.maximum, maximum);
    out.maximum = maximum;
    float block_sums[2][4] = {};
    for (float& value : out.values) value *= correction;
    for (int j = 0; j < count; ++j) {
      const float weight = HostExp2((scores[j] - maximum) * kExponentScale);
      block_sums[j / 32][j % 8 / 2] += weight;
      const float rounded = RoundToBF16(weight);
      for (int i = 0; i < batch.latent; ++i) {
        out.values[i] = Fma(rounded, ToFloat(batch.Record(row, block + j)[i]), out.values[i]);
      }
    }
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) {
        sums[half][i] = Fma(sums[half][i], correction, block_sums[half][i]);
      }
    }
  }
  const auto tree = [](const float* s) { return (s[0] + s[1]) + (s[2] + s[3]); };
  out.sum = tree(sums[0]) + tree(sums[1]);
  return out;
}

std::vector<float> Expected(const Batch& batch, int split_tokens) {
  std::vector<float> expected;
  for (int row = 0; row < batch.plan.rows(); ++row) {
    for (int head = 0; head < batch.heads; ++head) {
      const int keys = batch.plan.positions[row] + 1;
      Partial total;
      for (int begin = 0; begin < keys; begin += split_tokens) {
        const Partial split = Split(batch, row, head, begin, std::min(keys, begin + split_tokens));
        if (begin == 0) {
          total = split;
          continue;
        }
        const float maximum = std::max(total.maximum, split.maximum);
        const float a = Rescale(total.maximum, maximum);
        const float b = Rescale(split.maximum, maximum);
        total.maximum = maximum;
        total.sum = Fma(total.sum, a, split.sum * b);
        for (int i = 0; i < batch.latent; ++i) {
          total.values[i] = Fma(total.values[i], a, split.values[i] * b);
        }
      }
      const float factor = 1.0f / total.sum;
      for (const float value : total.values) expected.push_back(RoundToBF16(value * factor));
    }
  }
  return expected;
}

std::vector<float> Run(const Batch& batch, int split_tokens, Stream stream) {
  const MlaPlan plan = PlanMla(batch.plan, batch.heads, split_tokens);
  const Buffer<BF16> query(batch.query), slab(batch.slab);
  const Buffer<uint8_t> codes(batch.codes);
  const Buffer<int32_t> pages(batch.plan.pages), positions(batch.plan.positions);
  const Buffer<MlaTile> tiles(plan.tiles);
  const Buffer<MlaUnit> units(plan.units);
  const Buffer<float> values(std::vector<float>(int64_t{plan.partial_rows} * batch.latent));
  const Buffer<MlaState> states{std::vector<MlaState>(plan.partial_rows)};
  const Buffer<BF16> out(
      std::vector<BF16>(int64_t{batch.plan.rows()} * batch.heads * batch.latent));
  MlaDecode(stream, {.kv_type = batch.layout.type,
                     .rows = batch.plan.rows(),
                     .heads = batch.heads,
                     .latent_dim = batch.latent,
                     .split_tokens = split_tokens,
                     .softmax_scale = kScale,
                     .query = query.data(),
                     .slab = batch.layout.type == KvType::kBF16
                                 ? reinterpret_cast<const std::byte*>(slab.data())
                                 : reinterpret_cast<const std::byte*>(codes.data()),
                     .page_count = batch.page_count,
                     .pages = pages.data(),
                     .positions = positions.data(),
                     .tiles = tiles.data(),
                     .units = units.data(),
                     .tile_count = static_cast<int>(plan.tiles.size()),
                     .unit_count = static_cast<int>(plan.units.size()),
                     .partial_values = values.data(),
                     .partial_states = states.data(),
                     .out = out.data(),
                     .sm_count = 2});
  std::vector<float> result;
  for (const BF16 value : out.Read()) result.push_back(ToFloat(value));
  return result;
}

void Check(const Batch& batch, int split_tokens, int seeds) {
  const std::vector<float> expected = Expected(batch, split_tokens);
  ForSeeds(seeds, [&](Stream stream) {
    ExpectProducts(Run(batch, split_tokens, stream), expected, kReferenceTolerance, "out");
  });
}

EPIC_KERNEL_TEST(MlaOfDecodeRowsOfOddLengths) {
  // One key, a whole block, one over, several splits; 24 heads: tiles of less than 64 queries.
  Check(Batch(24, 128, {{0, 1}, {63, 1}, {64, 1}, {255, 1}, {300, 1}}, 1), 128, 3);
}
EPIC_KERNEL_TEST(MlaOfManyHeadsInTwoTiles) {
  Check(Batch(128, 128, {{70, 1}, {130, 1}}, 2), 64, 1);
}
EPIC_KERNEL_TEST(MlaOfPromptRowsSharesTiles) {
  // Five heads: a tile holds parts of 13 rows, whose first keys' splits differ in number.
  Check(Batch(5, 128, {{0, 30}, {120, 21}, {5, 1}}, 3), 128, 2);
}
EPIC_KERNEL_TEST(MlaOfTheRealShape) { Check(Batch(16, 512, {{100, 1}, {7, 2}}, 4), 64, 1); }

EPIC_KERNEL_TEST(MlaOfFp8Records) {
  Batch batch(24, 128, {{0, 1}, {63, 1}, {64, 1}, {300, 1}, {90, 6}}, 7);
  batch.MakeFp8();
  Check(batch, 128, 3);
}
EPIC_KERNEL_TEST(MlaOfFp8RecordsOfTheRealShape) {
  Batch batch(16, 512, {{100, 1}, {7, 2}}, 8);
  batch.MakeFp8();
  Check(batch, 64, 1);
}

EPIC_KERNEL_TEST(BatchesHaveEveryTileOnceAndFewPartials) {
  StepPlan plan;
  int row = 0;
  for (const auto& [rows, first_position] :
       {std::pair{3, 0}, std::pair{40, 1000}, std::pair{1, 126}, std::pair{30, 60}}) {
    plan.sequences.push_back(
        {.first_row = row, .row_count = rows, .first_position = first_position, .first_page = row});
    row += rows;
  }
  const MlaPlan whole = PlanMla(plan, 16, 128);
  Expect(BatchesOf(whole, whole.partial_rows).size() == 1, "one batch");
  const std::vector<MlaPlan> batches = BatchesOf(whole, 1200);
  Expect(batches.size() > 3, "several batches");
  size_t tiles = 0, units = 0;
  for (const MlaPlan& batch : batches) {
    Expect(batch.partial_rows <= 1200, "partial rows");
    int partial = 0;
    for (const MlaTile& tile : batch.tiles) {
      Expect(tile.query == whole.tiles[tiles++].query, "tiles are in order");
      Expect(batch.units[tile.first_unit].query == tile.query, "the tile's first unit");
    }
    for (const MlaUnit& unit : batch.units) {
      const MlaUnit& same = whole.units[units++];
      Expect(unit.query == same.query && unit.key_begin == same.key_begin, "units are in order");
      Expect((unit.partial < 0) == (same.partial < 0), "a unit alone");
      if (unit.partial < 0) continue;
      Expect(unit.partial == partial, "its partial rows");
      partial += kMlaTileQueries;
    }
    Expect(partial == batch.partial_rows, "all partial rows");
  }
  Expect(tiles == whole.tiles.size() && units == whole.units.size(), "all of them");
}

EPIC_KERNEL_TEST(MlaOfARowDoesNotKnowItsBatch) {
  const std::vector<float> alone = Run(Batch(16, 128, {{200, 1}}, 5), 128, {});
  Batch together(16, 128, {{200, 1}, {90, 6}}, 5);
  const Batch single(16, 128, {{200, 1}}, 5);
  // The same first sequence, in other pages.
  for (int key = 0; key <= 200; ++key) {
    const BF16* from = single.Record(0, key);
    std::copy(from, from + single.width, const_cast<BF16*>(together.Record(0, key)));
  }
  std::copy(single.query.begin(), single.query.end(), together.query.begin());
  std::vector<float> first = Run(together, 128, {});
  first.resize(alone.size());
  ExpectSame(first, alone, "the first sequence");
}

EPIC_KERNEL_TEST(MlaAgreesWithTheReferenceBackend) {
  const Batch batch(6, 128, {{500, 2}, {1100, 1}, {10, 3}}, 6);
  const auto backend = MakeReferenceBackend({});
  const AttentionShape shape = {.hidden = 1,
                                .heads = batch.heads,
                                .kv_rank = batch.latent,
                                .nope_dim = 1,
                                .rope_dim = kMlaRopeDim,
                                .v_dim = 1,
                                .softmax_scale = kScale};
  const std::vector<float> zeros(batch.heads * 65 * batch.width);
  const auto matrix = [&](int64_t rows, int64_t cols) {
    return SourceMatrix{.rows = rows, .cols = cols, .data = zeros.data()};
  };
  const auto attention = backend->LoadAttention({.shape = shape,
                                                 .input_norm = std::span(zeros).first(1),
                                                 .q = matrix(batch.heads * 65, 1),
                                                 .kv_a = matrix(batch.width, 1),
                                                 .kv_a_norm = std::span(zeros).first(batch.latent),
                                                 .kv_b = matrix(batch.heads * 2, batch.latent),
                                                 .o = matrix(1, batch.heads)});
  std::vector<BF16> slab = batch.slab, query = batch.query;
  std::byte* const slabs[] = {reinterpret_cast<std::byte*>(slab.data())};
  const KvView kv = {.layout = batch.layout, .slabs = slabs, .page_count = batch.page_count};
  const int64_t rows = batch.plan.rows();
  std::vector<BF16> out(rows * batch.heads * batch.latent);
  backend->Attend(*attention, batch.plan, kv, 0,
                  {DType::kBF16, rows, int64_t{batch.heads} * batch.width, query.data()},
                  {DType::kBF16, rows, int64_t{batch.heads} * batch.latent, out.data()});
  std::vector<float> expected;
  for (const BF16 value : out) expected.push_back(ToFloat(value));
  ExpectNear(Run(batch, 1024, {}), expected, kReferenceTolerance, "out");
}

}  // namespace
}  // namespace epic::kernels::cuda
