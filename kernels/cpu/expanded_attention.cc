#include "kernels/cpu/expanded_attention.h"

#include <algorithm>
#include <cstring>

#include "kernels/kv_record.h"

namespace epic::kernels {
namespace {

constexpr int kRows = AttentionTile::kLanesMax;  // of a tile, all of one head
// Expanded records kept at once: a bound on memory that leaves hundreds of keys per range for every
// model (V3: 512 keys of 128 heads take 40 MiB). Chosen, not measured.
constexpr int64_t kRecordsBytesMax = int64_t{64} << 20;

// What a key becomes for one head: [k_nope | rope | value], BF16, each part padded to 16 bytes.
struct ExpandedLayout {
  int64_t rope_offset_bytes;
  int64_t values_offset_bytes;
  int64_t record_bytes;

  explicit ExpandedLayout(const AttentionShape& shape)
      : rope_offset_bytes(KvLayout::Padded(int64_t{2} * shape.nope_dim)),
        values_offset_bytes(rope_offset_bytes + KvLayout::Padded(int64_t{2} * shape.rope_dim)),
        record_bytes(values_offset_bytes + KvLayout::Padded(int64_t{2} * shape.v_dim)) {}
};

int64_t PartialFloats(const AttentionShape& shape) {
  return AttentionPartialFloats(shape.v_dim, kRows);
}

}  // namespace

struct ExpandedAttention::Sequence {
  const CpuAttention& attention;
  const StepPlan& plan;
  const SequenceRows& rows;
  const KvView& kv;
  const int layer;
  const BF16* const nope;
  const Tensor query;
  BF16* const values;
  const ExpandedLayout layout;
  const int row_count;  // that attend expanded

  const AttentionShape& shape() const { return attention.shape; }
  int keys() const { return rows.first_position + row_count; }
  int tiles() const { return (row_count + kRows - 1) / kRows; }
};

void ExpandedAttention::Attend(const CpuAttention& attention, const StepPlan& plan,
                               const KvView& kv, int layer, const BF16* nope, Tensor query,
                               BF16* values) {
  for (const SequenceRows& rows : plan.sequences) {
    // Sequences go one after another, so that the expanded records of one make room for those of
    // the next.
    const int count = ExpandedRows(attention, rows);
    if (count == 0) continue;
    AttendSequence({attention, plan, rows, kv, layer, nope, query, values,
                    ExpandedLayout(attention.shape), count});
  }
}

void ExpandedAttention::AttendSequence(const Sequence& sequence) {
  const AttentionShape& shape = sequence.shape();
  // Ranges are whole splits at absolute positions, so a range's end never cuts one: bits do not
  // depend on how many keys fit.
  const int64_t key_bytes = shape.heads * sequence.layout.record_bytes;
  const int64_t splits = std::max<int64_t>(1, kRecordsBytesMax / key_bytes / kSplitTokens);
  const auto step = static_cast<int>(std::min<int64_t>(splits * kSplitTokens, sequence.keys()));
  auto* records = records_.Get<std::byte>(step * key_bytes);
  // Every range adds to them, so all ranges share one Get.
  auto* totals = totals_.Get<float>(int64_t{sequence.tiles()} * shape.heads * PartialFloats(shape));
  for (int begin = 0; begin < sequence.keys(); begin += step) {
    const Range range{begin, std::min(sequence.keys(), begin + step)};
    AddExpanding(sequence, range, records);
    AddTiles(sequence, range, records, totals);
    // The range must be done before the next one overwrites its records.
    gemms_.Run();
  }
}

// records [heads][keys of the range]
void ExpandedAttention::AddExpanding(const Sequence& sequence, const Range& range,
                                     std::byte* records) {
  const AttentionShape& shape = sequence.shape();
  const ExpandedLayout& layout = sequence.layout;
  // Products want dense BF16 rows, whatever type the cache has; a latent of either type is exact in
  // BF16.
  auto* latents = latents_.Get<BF16>(int64_t{range.count()} * shape.kv_rank);
  gemms_.Rows(range.count(), sequence.kv.layout.record_bytes(), [=, &sequence](int64_t i, int) {
    const AttentionShape& a = sequence.shape();
    const KvLayout& stored = sequence.kv.layout;
    const auto position = static_cast<int>(range.begin + i);
    const int64_t page = sequence.plan.pages[sequence.rows.first_page + position / kPageTokens];
    const std::byte* record = sequence.kv.slabs[sequence.layer] + page * stored.page_bytes() +
                              position % kPageTokens * stored.record_bytes();
    ReadLatents(stored, record, latents + i * a.kv_rank);
    for (int h = 0; h < a.heads; ++h) {
      std::byte* to = records + (int64_t{h} * range.count() + i) * sequence.layout.record_bytes;
      std::memcpy(to + sequence.layout.rope_offset_bytes, record + stored.rope_offset_bytes(),
                  2 * a.rope_dim);
    }
  });
  std::vector<GemmJob> jobs;
  for (int h = 0; h < shape.heads; ++h) {
    jobs.push_back({latents, shape.kv_rank, range.count(), sequence.attention.w_k[h], {}});
    jobs.push_back({latents, shape.kv_rank, range.count(), sequence.attention.w_uv[h], {}});
  }
  gemms_.Products(family_, std::move(jobs), [=, this](const GemmBlock& block) {
    const int64_t first = int64_t{block.job / 2} * range.count();
    const int64_t part = block.job % 2 == 0 ? 0 : layout.values_offset_bytes;
    for (int64_t i = block.row_begin; i < block.row_end; ++i) {
      std::byte* to = records + (first + i) * layout.record_bytes + part + 2 * block.n_begin;
      ops_.to_bf16(block.Row(i), block.columns(), reinterpret_cast<BF16*>(to));
    }
  });
}

void ExpandedAttention::AddTiles(const Sequence& sequence, const Range& range,
                                 const std::byte* records, float* totals) {
  const AttentionShape& shape = sequence.shape();
  const int64_t tasks = int64_t{sequence.tiles()} * shape.heads;
  const int64_t width = shape.nope_dim + shape.rope_dim + shape.v_dim;
  next_task_ = 0;  // before the region begins, which tells every thread
  // A product of 16 lanes takes about as long as reading four bytes.
  const int64_t cost = tasks * (kRows / kLanes) * 4 * range.count() * width;
  gemms_.Part(cost, [=, this, &sequence](int thread, int) {
    const int tiles = sequence.tiles();
    for (int i = next_task_.fetch_add(1); i < tasks; i = next_task_.fetch_add(1)) {
      RunTile(sequence, range, i / tiles, i % tiles * kRows, records, thread,
              totals + i * PartialFloats(sequence.shape()));
      pool_.Breathe(thread);
    }
  });
}

// Rows from `first_row` on of one head by the keys of a range, splits in order into `total`.
void ExpandedAttention::RunTile(const Sequence& sequence, const Range& range, int head,
                                int first_row, const std::byte* records, int thread, float* total) {
  const AttentionShape& shape = sequence.shape();
  const ExpandedLayout& layout = sequence.layout;
  const int width = shape.nope_dim + shape.rope_dim;
  const int64_t partial_bytes = 4 * PartialFloats(shape);
  const int64_t queries_bytes = (int64_t{2} * kRows * width + 63) / 64 * 64;
  auto* partial_memory = scratch_[thread].Get<std::byte>(
      partial_bytes + queries_bytes + attention_.ScratchBytes(width, shape.v_dim, true));
  auto* partial = reinterpret_cast<float*>(partial_memory);
  auto* queries = reinterpret_cast<BF16*>(partial_memory + partial_bytes);
  std::byte* scratch = partial_memory + partial_bytes + queries_bytes;

  AttentionTile tile;
  tile.lanes = std::min(kRows, sequence.row_count - first_row);
  tile.stride = (tile.lanes + kLanes - 1) / kLanes * kLanes;
  tile.latent_dim = shape.nope_dim;
  tile.rope_dim = shape.rope_dim;
  tile.value_dim = shape.v_dim;
  tile.values_offset_bytes = layout.values_offset_bytes;
  tile.record_bytes = layout.record_bytes;
  tile.rope_offset_bytes = layout.rope_offset_bytes;
  tile.scale = shape.softmax_scale;
  BF16* out[kRows];
  for (int i = 0; i < tile.lanes; ++i) {
    const int64_t row = sequence.rows.first_row + first_row + i;
    BF16* query = queries + i * width;
    std::memcpy(query, sequence.nope + (row * shape.heads + head) * shape.nope_dim,
                2 * shape.nope_dim);
    std::memcpy(query + shape.nope_dim,
                sequence.query.Row<BF16>(row) + head * int64_t{shape.kv_rank + shape.rope_dim} +
                    shape.kv_rank,
                2 * shape.rope_dim);
    tile.queries[i] = query;
    tile.positions[i] = sequence.plan.positions[row];
    out[i] = sequence.values + (row * shape.heads + head) * shape.v_dim;
  }
  attention_.Load(tile, scratch);
  // Keys after the tile's last row are not touched; rows before it mask what they do not see.
  const int end = std::min(range.end, tile.positions[tile.lanes - 1] + 1);
  const std::byte* of_head = records + int64_t{head} * range.count() * layout.record_bytes;
  for (int begin = range.begin; begin < end; begin += kSplitTokens) {
    const int split_end = std::min(end, begin + kSplitTokens);
    const std::byte* pages[kSplitTokens / kPageTokens + 1] = {};
    for (int key = begin; key < split_end; key += kPageTokens) {
      pages[(key - begin) / kPageTokens] = of_head + (key - range.begin) * layout.record_bytes;
    }
    // Split 0 goes straight into the totals, as the first split of a merge is taken as it is.
    attention_.Split(tile, pages, begin, split_end, scratch, begin == 0 ? total : partial);
    if (begin > 0) ops_.attention_merge(tile, begin, partial, total);
  }
  // The last range has merged all splits that any row sees.
  if (range.end == sequence.keys()) ops_.attention_finish(tile, total, out);
}

}  // namespace epic::kernels
