#include "kernels/cpu/cpu_attention.h"

#include <algorithm>
#include <cstring>

#include "kernels/check.h"
#include "kernels/kv_record.h"
#include "kernels/math.h"

namespace epic::kernels {
namespace {

constexpr int kSplitPages = kSplitTokens / kPageTokens;
// Partial results that may be kept at once to spread one tile's splits over threads.
constexpr int64_t kPartialBytesMax = int64_t{256} << 20;

void Rotate(const RopeTable& table, int64_t row, bool interleaved, const float* x, float* y) {
  const int pairs = table.pairs;
  const float* cos = table.cos.data() + row * pairs;
  const float* sin = table.sin.data() + row * pairs;
  for (int i = 0; i < pairs; ++i) {
    const int first = interleaved ? 2 * i : i;
    const int second = interleaved ? 2 * i + 1 : i + pairs;
    const float x1 = x[first];
    const float x2 = x[second];
    y[first] = Fma(x1, cos[i], -(x2 * sin[i]));
    y[second] = Fma(x2, cos[i], x1 * sin[i]);
  }
}

// Multiplies the rows of `ranges` by each head's weight: job i is of head i / ranges.size(), and
// its row 0 is row ranges[i % ranges.size()].begin.
std::vector<GemmJob> JobsOfHeads(const std::vector<RowRange>& ranges, const BF16* rows,
                                 int64_t row_values, int64_t head_values,
                                 const std::vector<PackedWeight>& weights) {
  std::vector<GemmJob> jobs;
  for (size_t h = 0; h < weights.size(); ++h) {
    for (const RowRange& range : ranges) {
      const BF16* a = rows + range.begin * row_values + static_cast<int64_t>(h) * head_values;
      jobs.push_back({a, row_values, range.end - range.begin, weights[h], {}});
    }
  }
  return jobs;
}

// Neighbouring sequences make one range, so that a product has as many rows as it can.
std::vector<RowRange> AbsorbedRows(const CpuAttention& attention, const StepPlan& plan) {
  std::vector<RowRange> absorbed;
  for (const SequenceRows& sequence : plan.sequences) {
    const int64_t begin = sequence.first_row + ExpandedRows(attention, sequence);
    const int64_t end = sequence.first_row + sequence.row_count;
    if (begin == end) continue;
    if (!absorbed.empty() && absorbed.back().end == begin) {
      absorbed.back().end = end;
    } else {
      absorbed.push_back({begin, end});
    }
  }
  return absorbed;
}

int SplitCount(int keys) { return (keys + kSplitTokens - 1) / kSplitTokens; }

}  // namespace

struct AttentionRunner::Tile {
  AttentionTile lanes;
  BF16* out[AttentionTile::kLanesMax] = {};
  const int32_t* pages = nullptr;  // the sequence's page table
  int keys = 0;                    // that the last row sees
};

struct AttentionRunner::Keys {
  const std::byte* slab;
  int64_t page_bytes;
  int latent_dim;
  int width;  // latent and rope
  int lanes_max;
};

const float* AttentionRunner::AddProjections(const CpuAttention& attention, int64_t rows,
                                             const BF16* normed, float* kv_a) {
  const AttentionShape& shape = attention.shape;
  const int64_t q_columns = attention.q.n;
  auto* q = q_.Get<float>(rows * q_columns);
  const bool low_rank = shape.q_rank > 0;
  auto* first = low_rank ? q_low_.Get<float>(rows * shape.q_rank) : q;
  const PackedWeight& first_weight = low_rank ? attention.q_a : attention.q;
  gemms_.Products(family_,
                  {{normed, shape.hidden, rows, attention.kv_a, {}},
                   {normed, shape.hidden, rows, first_weight, {}}},
                  [kv_a, first, &attention, &first_weight](const GemmBlock& block) {
                    block.job == 0 ? block.CopyTo(kv_a, attention.kv_a.n)
                                   : block.CopyTo(first, first_weight.n);
                  });
  if (!low_rank) return q;

  auto* low_normed = q_low_normed_.Get<BF16>(rows * shape.q_rank);
  gemms_.Rows(rows, 8 * shape.q_rank, [=, this, &attention](int64_t t, int) {
    const AttentionShape& a = attention.shape;
    ops_.rms_norm(first + t * a.q_rank, attention.q_a_norm.data(), a.q_rank, a.inner_norm_eps,
                  low_normed + t * a.q_rank);
  });
  gemms_.Products(family_, {{low_normed, shape.q_rank, rows, attention.q, {}}},
                  [=](const GemmBlock& block) { block.CopyTo(q, q_columns); });
  return q;
}

// The row's KV record, its q_nope in BF16 and the rope part of its query.
void AttentionRunner::WriteRow(const CpuAttention& attention, const StepPlan& plan,
                               const RopeTable& rope, const KvView& kv, int layer, int64_t row,
                               const float* q, const float* kv_a, BF16* nope, BF16* query) const {
  const AttentionShape& shape = attention.shape;
  const SequenceRows& sequence = plan.sequences[plan.row_sequence[row]];
  const int position = plan.positions[row];
  const int64_t page = plan.pages[sequence.first_page + position / kPageTokens];
  std::byte* record = kv.slabs[layer] + page * kv.layout.page_bytes() +
                      position % kPageTokens * kv.layout.record_bytes();
  std::memset(record, 0, kv.layout.record_bytes());
  std::vector<BF16> latent(shape.kv_rank);
  ops_.rms_norm(kv_a, attention.kv_a_norm.data(), shape.kv_rank, shape.inner_norm_eps,
                latent.data());
  WriteLatent(kv.layout, latent.data(), record);
  std::vector<float> rotated(shape.rope_dim);
  Rotate(rope, row, shape.rope_interleaved, kv_a + shape.kv_rank, rotated.data());
  ops_.to_bf16(rotated.data(), shape.rope_dim,
               reinterpret_cast<BF16*>(record + kv.layout.rope_offset_bytes()));
  for (int h = 0; h < shape.heads; ++h) {
    const float* head = q + h * int64_t{shape.nope_dim + shape.rope_dim};
    ops_.to_bf16(head, shape.nope_dim, nope + h * int64_t{shape.nope_dim});
    Rotate(rope, row, shape.rope_interleaved, head + shape.nope_dim, rotated.data());
    ops_.to_bf16(rotated.data(), shape.rope_dim,
                 query + h * int64_t{shape.kv_rank + shape.rope_dim} + shape.kv_rank);
  }
}

AttentionStep AttentionRunner::In(const CpuAttention& attention, const StepPlan& plan,
                                  const RopeTable& rope, const KvView& kv, int layer,
                                  Tensor residual, Tensor query) {
  const AttentionShape& shape = attention.shape;
  const int64_t rows = plan.rows();
  auto* normed = normed_.Get<BF16>(rows * shape.hidden);
  gemms_.Rows(rows, 8 * shape.hidden, [&](int64_t t, int) {
    ops_.rms_norm(residual.Row<float>(t), attention.input_norm.data(), shape.hidden, shape.norm_eps,
                  normed + t * shape.hidden);
  });
  auto* kv_a = kv_a_.Get<float>(rows * attention.kv_a.n);
  const float* q = AddProjections(attention, rows, normed, kv_a);
  const int64_t nope_columns = int64_t{shape.heads} * shape.nope_dim;
  auto* nope = nope_.Get<BF16>(rows * nope_columns);
  gemms_.Rows(rows, 8 * attention.q.n, [&](int64_t t, int) {
    WriteRow(attention, plan, rope, kv, layer, t, q + t * attention.q.n,
             kv_a + t * attention.kv_a.n, nope + t * nope_columns, query.Row<BF16>(t));
  });
  AttentionStep step = {.attention = &attention,
                        .rows = rows,
                        .absorbed = AbsorbedRows(attention, plan),
                        .nope = nope,
                        .values = values_.Get<BF16>(rows * shape.heads * shape.v_dim)};
  auto jobs = JobsOfHeads(step.absorbed, nope, nope_columns, shape.nope_dim, attention.w_uk);
  gemms_.Products(family_, std::move(jobs), [&](const GemmBlock& block) {
    const auto ranges = static_cast<int>(step.absorbed.size());
    const int64_t first = step.absorbed[block.job % ranges].begin;
    const int64_t head = block.job / ranges;
    const int64_t column = head * (shape.kv_rank + shape.rope_dim) + block.n_begin;
    for (int64_t t = block.row_begin; t < block.row_end; ++t) {
      ops_.to_bf16(block.Row(t), block.columns(), query.Row<BF16>(first + t) + column);
    }
  });
  gemms_.Run();
  return step;
}

std::vector<AttentionRunner::Tile> AttentionRunner::MakeTiles(const CpuAttention& attention,
                                                              const StepPlan& plan,
                                                              const KvView& kv, Tensor query,
                                                              Tensor output, int lanes_max) const {
  const AttentionShape& shape = attention.shape;
  const int width = shape.kv_rank + shape.rope_dim;
  std::vector<Tile> tiles;
  for (const SequenceRows& sequence : plan.sequences) {
    const int64_t expanded = ExpandedRows(attention, sequence);
    const int64_t lanes = (sequence.row_count - expanded) * shape.heads;
    for (int64_t begin = 0; begin < lanes; begin += lanes_max) {
      Tile& tile = tiles.emplace_back();
      tile.lanes.lanes = static_cast<int>(std::min<int64_t>(lanes_max, lanes - begin));
      tile.lanes.latent_dim = shape.kv_rank;
      tile.lanes.rope_dim = shape.rope_dim;
      tile.lanes.value_dim = shape.kv_rank;
      tile.lanes.stride = (tile.lanes.lanes + kLanes - 1) / kLanes * kLanes;
      tile.lanes.fp8 = kv.layout.type == KvType::kFP8;
      tile.lanes.record_bytes = kv.layout.record_bytes();
      tile.lanes.scales_offset_bytes = kv.layout.scales_offset_bytes();
      tile.lanes.rope_offset_bytes = kv.layout.rope_offset_bytes();
      tile.lanes.scale = shape.softmax_scale;
      tile.pages = plan.pages.data() + sequence.first_page;
      for (int i = 0; i < tile.lanes.lanes; ++i) {
        const int64_t row = sequence.first_row + expanded + (begin + i) / shape.heads;
        const int64_t head = (begin + i) % shape.heads;
        tile.lanes.queries[i] = query.Row<BF16>(row) + head * width;
        tile.out[i] = output.Row<BF16>(row) + head * shape.kv_rank;
        tile.lanes.positions[i] = plan.positions[row];
        tile.keys = std::max(tile.keys, plan.positions[row] + 1);
      }
    }
  }
  return tiles;
}

void AttentionRunner::RunSplit(const Tile& tile, const Keys& keys, int split, std::byte* scratch,
                               float* partial) const {
  const int begin = split * kSplitTokens;
  const int end = std::min(tile.keys, begin + kSplitTokens);
  // One more than the split has, to be brought near.
  const std::byte* pages[kSplitPages + 1] = {};
  for (int i = 0; i <= kSplitPages && begin + i * kPageTokens < tile.keys; ++i) {
    pages[i] = keys.slab + tile.pages[split * kSplitPages + i] * keys.page_bytes;
  }
  attention_.Split(tile.lanes, pages, begin, end, scratch, partial);
}

void AttentionRunner::RunTile(const Tile& tile, const Keys& keys, std::byte* scratch, float* total,
                              float* partial) const {
  attention_.Load(tile.lanes, scratch);
  RunSplit(tile, keys, 0, scratch, total);
  for (int split = 1; split < SplitCount(tile.keys); ++split) {
    RunSplit(tile, keys, split, scratch, partial);
    ops_.attention_merge(tile.lanes, split * kSplitTokens, partial, total);
  }
  ops_.attention_finish(tile.lanes, total, tile.out);
}

// Tiles are many: each is one task, its splits one after another.
void AttentionRunner::AddTiles(const std::vector<Tile>& tiles, const Keys& keys, int64_t cost) {
  next_task_ = 0;
  gemms_.Part(cost, [&, this](int thread, int) {
    const int64_t partial_bytes = 4 * AttentionPartialFloats(keys.latent_dim, keys.lanes_max);
    auto* total = scratch_[thread].Get<std::byte>(
        2 * partial_bytes + attention_.ScratchBytes(keys.width, keys.latent_dim, false));
    std::byte* partial = total + partial_bytes;
    for (size_t i = next_task_.fetch_add(1); i < tiles.size(); i = next_task_.fetch_add(1)) {
      RunTile(tiles[i], keys, partial + partial_bytes, reinterpret_cast<float*>(total),
              reinterpret_cast<float*>(partial));
      pool_.Breathe(thread);
    }
  });
}

// Tiles are few: each split of each is a task, then they are merged in order.
void AttentionRunner::AddSplits(const std::vector<Tile>& tiles, const Keys& keys, int64_t cost) {
  tasks_.clear();
  for (size_t i = 0; i < tiles.size(); ++i) {
    for (int split = 0; split < SplitCount(tiles[i].keys); ++split) tasks_.push_back({i, split});
  }
  const int64_t partial_floats = AttentionPartialFloats(keys.latent_dim, keys.lanes_max);
  auto* partials = partials_.Get<float>(static_cast<int64_t>(tasks_.size()) * partial_floats);
  next_task_ = 0;
  gemms_.Part(cost, [&, this, partials, partial_floats](int thread, int) {
    auto* scratch = scratch_[thread].Get<std::byte>(
        attention_.ScratchBytes(keys.width, keys.latent_dim, false));
    for (size_t i = next_task_.fetch_add(1); i < tasks_.size(); i = next_task_.fetch_add(1)) {
      const Tile& tile = tiles[tasks_[i].tile];
      attention_.Load(tile.lanes, scratch);
      RunSplit(tile, keys, tasks_[i].split, scratch,
               partials + static_cast<int64_t>(i) * partial_floats);
      pool_.Breathe(thread);
    }
  });
  const int64_t bytes = 4 * static_cast<int64_t>(tasks_.size()) * partial_floats;
  const int64_t merge_cost = tiles.size() > 1 ? bytes : 0;
  gemms_.Part(merge_cost, [&, this, partials, partial_floats](int thread, int threads) {
    for (size_t i = 0, task = 0; i < tiles.size(); task += SplitCount(tiles[i++].keys)) {
      if (static_cast<int>(i) % threads != thread) continue;
      float* total = partials + static_cast<int64_t>(task) * partial_floats;
      for (int split = 1; split < SplitCount(tiles[i].keys); ++split) {
        ops_.attention_merge(tiles[i].lanes, split * kSplitTokens, total + split * partial_floats,
                             total);
      }
      ops_.attention_finish(tiles[i].lanes, total, tiles[i].out);
    }
  });
}

void AttentionRunner::Attend(const AttentionStep& step, const CpuAttention& attention,
                             const StepPlan& plan, const KvView& kv, int layer, Tensor query,
                             Tensor output) {
  const AttentionShape& shape = attention.shape;
  int64_t rows = 0;  // that attend absorbed
  for (const SequenceRows& sequence : plan.sequences) {
    rows += sequence.row_count - ExpandedRows(attention, sequence);
  }
  if (rows < plan.rows()) {
    KERNEL_CHECK(step.attention == &attention);
    KERNEL_CHECK_EQ(step.rows, plan.rows());
    expanded_.Attend(attention, plan, kv, layer, step.nope, query, step.values);
  }
  if (rows == 0) return;
  const int threads = pool_.threads();
  const int64_t lanes = rows * shape.heads;
  // Few lanes: narrower tiles give every thread one.
  const bool narrow = lanes < int64_t{2} * threads * AttentionTile::kLanesMax;
  const int lanes_max = narrow ? kLanes : AttentionTile::kLanesMax;
  const std::vector<Tile> tiles = MakeTiles(attention, plan, kv, query, output, lanes_max);
  const Keys keys{kv.slabs[layer], kv.layout.page_bytes(), shape.kv_rank,
                  shape.kv_rank + shape.rope_dim, lanes_max};
  int64_t splits = 0;
  int64_t cost = 0;
  for (const Tile& tile : tiles) {
    splits += SplitCount(tile.keys);
    // A product of 16 lanes takes about as long as reading four bytes.
    cost += int64_t{4} * tile.keys * (keys.width + keys.latent_dim);
  }
  if (splits == 1) cost = 0;
  const bool few = static_cast<int64_t>(tiles.size()) < int64_t{2} * threads;
  const bool spread =
      threads > 1 && few && splits > static_cast<int64_t>(tiles.size()) &&
      splits * 4 * AttentionPartialFloats(shape.kv_rank, lanes_max) <= kPartialBytesMax;
  spread ? AddSplits(tiles, keys, cost) : AddTiles(tiles, keys, cost);
  gemms_.Run();
}

void AttentionRunner::Out(const AttentionStep& step, const CpuAttention& attention, Tensor output,
                          Tensor residual) {
  KERNEL_CHECK(step.attention == &attention);
  KERNEL_CHECK_EQ(step.rows, output.rows);
  const AttentionShape& shape = attention.shape;
  const int64_t rows = output.rows;
  const int64_t columns = int64_t{shape.heads} * shape.v_dim;
  BF16* values = step.values;
  auto jobs =
      JobsOfHeads(step.absorbed, output.As<BF16>(), output.cols, shape.kv_rank, attention.w_uv);
  gemms_.Products(family_, std::move(jobs), [&](const GemmBlock& block) {
    const auto ranges = static_cast<int>(step.absorbed.size());
    const int64_t first = step.absorbed[block.job % ranges].begin;
    const int64_t column = int64_t{block.job / ranges} * shape.v_dim + block.n_begin;
    for (int64_t t = block.row_begin; t < block.row_end; ++t) {
      ops_.to_bf16(block.Row(t), block.columns(), values + (first + t) * columns + column);
    }
  });
  gemms_.Products(family_, {{values, columns, rows, attention.o, {}}}, [&](const GemmBlock& block) {
    for (int64_t t = block.row_begin; t < block.row_end; ++t) {
      ops_.add(block.Row(t), block.columns(), residual.Row<float>(t) + block.n_begin);
    }
  });
  gemms_.Run();
}

}  // namespace epic::kernels
