#include "kernels/cuda/mla_decode.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/mla_decode_kernel.h"
#include "kernels/cuda/mla_merge_kernel.h"

namespace epic::kernels::cuda {
namespace {

TileShape Chunks(const void* data, int64_t rows, int64_t columns) {
  // 64 columns of BF16 are the 128 bytes of a swizzled row (tile_shape.h).
  return {.data = data,
          .element_bytes = 2,
          .extent = {columns, rows, 1},
          .stride_bytes = {columns * 2, columns * 2 * rows},
          .box = {64, 64, 1},
          .swizzled = true};
}

// 64 FP8 records, `box_bytes` of each from `offset`.
TileShape Bytes(const MlaArguments& a, int offset, int box_bytes) {
  const int64_t record_bytes = MlaLayout(KvType::kFP8, a.latent_dim).record_bytes();
  const int64_t records = int64_t{a.page_count} * kPageTokens;
  // These boxes are not swizzled: threads decode the bytes, and no product reads them where they
  // land.
  return {.data = a.slab + offset,
          .element_bytes = 1,
          .extent = {record_bytes - offset, records, 1},
          .stride_bytes = {record_bytes, record_bytes * records},
          .box = {box_bytes, kPageTokens, 1}};
}

template <int kLatent, KvType kType>
void LaunchBoth(Stream stream, const MlaArguments& a) {
  MlaParams params = {.query = MakeTensorMap(MlaQueryTile(a)),
                      .records = MakeTensorMap(MlaRecordTile(a)),
                      .arguments = a};
  if (kType == KvType::kFP8) params.record_ends = MakeTensorMap(MlaRecordEndTile(a));
  // As many blocks as run at once: each walks over units, so that none waits for a place.
  Launch<MlaSplitKernel<kLatent, kType>>(stream, std::min(a.unit_count, a.sm_count), params);
  // More units than tiles: some tile has several splits.
  if (a.unit_count > a.tile_count) {
    Launch<MlaMergeKernel<kLatent>>(stream, a.tile_count * kMlaTileQueries, a);
  }
}

template <int kLatent>
void LaunchType(Stream stream, const MlaArguments& a) {
  if (a.kv_type == KvType::kBF16) {
    LaunchBoth<kLatent, KvType::kBF16>(stream, a);
  } else {
    LaunchBoth<kLatent, KvType::kFP8>(stream, a);
  }
}

}  // namespace

TileShape MlaQueryTile(const MlaArguments& a) {
  return Chunks(a.query, int64_t{a.rows} * a.heads, a.latent_dim + kMlaRopeDim);
}

TileShape MlaRecordTile(const MlaArguments& a) {
  if (a.kv_type == KvType::kFP8) return Bytes(a, 0, std::min(a.latent_dim, kMlaCodeBoxBytes));
  return Chunks(a.slab, int64_t{a.page_count} * kPageTokens, a.latent_dim + kMlaRopeDim);
}

TileShape MlaRecordEndTile(const MlaArguments& a) {
  const KvLayout layout = MlaLayout(KvType::kFP8, a.latent_dim);
  const int64_t offset = layout.scales_offset_bytes();
  return Bytes(a, static_cast<int>(offset), static_cast<int>(layout.record_bytes() - offset));
}

MlaPlan PlanMla(const StepPlan& plan, int heads, int split_tokens) {
  KERNEL_CHECK(heads > 0 && split_tokens > 0, "%d heads, splits of %d", heads, split_tokens);
  MlaPlan out;
  for (const SequenceRows& sequence : plan.sequences) {
    // A tile never crosses sequences: it has one page table.
    const int queries = sequence.row_count * heads;
    for (int begin = 0; begin < queries; begin += kMlaTileQueries) {
      const MlaTile tile = {.query = sequence.first_row * heads + begin,
                            .queries = std::min(queries - begin, kMlaTileQueries),
                            .first_unit = static_cast<int32_t>(out.units.size())};
      // The tile's last row sees most keys; rows before it mask what they do not see.
      const int last_row = (begin + tile.queries - 1) / heads;
      const int keys = sequence.first_position + last_row + 1;
      // Splits begin at absolute positions, so a row has the same ones whatever rows share its
      // tile.
      for (int key = 0; key < keys; key += split_tokens) {
        MlaUnit unit = {.query = tile.query,
                        .queries = tile.queries,
                        .first_page = sequence.first_page,
                        .key_begin = key,
                        .key_end = std::min(keys, key + split_tokens),
                        .partial = -1};
        // A tile with one split writes its results itself and needs no room for partial ones.
        if (keys > split_tokens) {
          unit.partial = out.partial_rows;
          out.partial_rows += kMlaTileQueries;
        }
        out.units.push_back(unit);
      }
      out.tiles.push_back(tile);
    }
  }
  return out;
}

std::vector<MlaPlan> BatchesOf(const MlaPlan& plan, int partial_rows_max) {
  std::vector<MlaPlan> batches;
  for (size_t t = 0; t < plan.tiles.size(); ++t) {
    MlaTile tile = plan.tiles[t];
    const size_t begin = tile.first_unit;
    const size_t end = t + 1 < plan.tiles.size() ? plan.tiles[t + 1].first_unit : plan.units.size();
    // Either all units of a tile have partial results or its only unit has none.
    const int partial_rows =
        plan.units[begin].partial < 0 ? 0 : static_cast<int>(end - begin) * kMlaTileQueries;
    // A tile whose partial results alone exceed the limit still makes a batch of its own.
    if (batches.empty() || batches.back().partial_rows + partial_rows > partial_rows_max) {
      batches.emplace_back();
    }
    MlaPlan& batch = batches.back();
    tile.first_unit = static_cast<int32_t>(batch.units.size());
    batch.tiles.push_back(tile);
    for (size_t u = begin; u < end; ++u) {
      batch.units.push_back(plan.units[u]);
      if (partial_rows == 0) continue;
      batch.units.back().partial = batch.partial_rows;
      batch.partial_rows += kMlaTileQueries;
    }
  }
  return batches;
}

void MlaDecode(Stream stream, const MlaArguments& arguments) {
  // The kernel takes a page of 64 keys at a time, and a split may not begin inside of one.
  KERNEL_CHECK_EQ(arguments.split_tokens % kPageTokens, 0);
  KERNEL_CHECK_LE(arguments.tile_count, arguments.unit_count);
  KERNEL_CHECK_GT(arguments.sm_count, 0);
  KERNEL_CHECK(arguments.query != nullptr && arguments.slab != nullptr && arguments.out != nullptr);
  switch (arguments.latent_dim) {
    case 128:
      return LaunchType<128>(stream, arguments);
    case 512:
      return LaunchType<512>(stream, arguments);
    default:
      KERNEL_CHECK(false, "latent_dim %d, it must be 128 or 512", arguments.latent_dim);
  }
}

}  // namespace epic::kernels::cuda
