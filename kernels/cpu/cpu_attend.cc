// AttentionRunner::Attend: tiles of lanes by splits of keys, shared among threads.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/cpu_attention.h"

namespace epic::kernels {
namespace {

constexpr int kSplitPages = kSplitTokens / kPageTokens;
// Partial results that may be kept at once to spread one tile's splits over threads: a bound on
// memory, far above what few tiles of a long context need. Chosen, not measured.
constexpr int64_t kPartialBytesMax = int64_t{256} << 20;

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

std::vector<AttentionRunner::Tile> AttentionRunner::MakeTiles(const CpuAttention& attention,
                                                              const StepPlan& plan,
                                                              const KvView& kv, Tensor query,
                                                              Tensor output, int lanes_max) const {
  const AttentionShape& shape = attention.shape;
  const int width = shape.kv_rank + shape.rope_dim;
  std::vector<Tile> tiles;
  // A tile never crosses sequences, since its lanes share keys.
  for (const SequenceRows& sequence : plan.sequences) {
    // The rows of a prompt that attend expanded stand first in their sequence.
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
        // Earlier rows of the tile mask the keys after them.
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

// Where tiles are many, each is one task with its splits one after another. Tasks are drawn from a
// counter, so that threads with short sequences take more; which thread computes a tile changes no
// bit.
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

// Where tiles are few, each split of each is a task, and then they are merged: the same merges, in
// the same order, as RunTile makes. So both ways give the same bits.
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
  // One tile is merged by one thread: to share a phase would only cost its barrier.
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
    // The step's values are those that In made for this very layer.
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
  // Nothing to share: on the calling thread.
  if (splits == 1) cost = 0;
  const bool few = static_cast<int64_t>(tiles.size()) < int64_t{2} * threads;
  const bool spread =
      threads > 1 && few && splits > static_cast<int64_t>(tiles.size()) &&
      splits * 4 * AttentionPartialFloats(shape.kv_rank, lanes_max) <= kPartialBytesMax;
  spread ? AddSplits(tiles, keys, cost) : AddTiles(tiles, keys, cost);
  gemms_.Run();
}

}  // namespace epic::kernels
