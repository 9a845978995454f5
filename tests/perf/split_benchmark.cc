// What the fixed tree of attention costs: splits of 512 keys, merged in order (docs/numerics.md),
// against splits as large as threads and batch allow, which would give a row other bits in another
// batch. The dynamic variant lives here alone; both use the same inner loops.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/cpu/cpu_attention.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/fma_gemm.h"
#include "kernels/cpu/gemm_runner.h"
#include "kernels/cpu/huge_memory.h"
#include "kernels/cpu/vector_ops.h"
#include "kernels/threads/thread_pool.h"

namespace epic::kernels {
namespace {

constexpr KvLayout kLayout{.latent_dim = 512, .rope_dim = 64};
constexpr int kWidth = 576;
constexpr int kHeads = 16;

ThreadPool& Pool() {
  static ThreadPool pool(ThreadPool::AvailableCores(), false);
  return pool;
}

const VectorOps& Ops() { return DetectCpuFeatures().avx512 ? Avx512VectorOps() : Avx2VectorOps(); }

// Sequences in V2-Lite's widths, with the same rows each.
struct Batch {
  StepPlan plan;
  HugeMemory slab;
  std::vector<BF16> query, output;

  Batch(int sequences, int rows, int context)
      : slab(PagesOf(rows, context) * sequences * kLayout.page_bytes()) {
    std::memset(slab.data(), 0x31, slab.bytes());  // 2.5e-9 everywhere
    const int pages = PagesOf(rows, context);
    for (int s = 0; s < sequences; ++s) {
      plan.sequences.push_back({plan.rows(), rows, context, s * pages});
      for (int i = 0; i < pages; ++i) plan.pages.push_back(s * pages + i);
      for (int i = 0; i < rows; ++i) {
        plan.token_ids.push_back(0);
        plan.positions.push_back(context + i);
        plan.row_sequence.push_back(s);
      }
    }
    query.assign(int64_t{plan.rows()} * kHeads * kWidth, BF16{0x3f80});
    output.resize(int64_t{plan.rows()} * kHeads * kLayout.latent_dim);
  }
  static int PagesOf(int rows, int context) {
    return (context + rows + kPageTokens - 1) / kPageTokens;
  }
};

// The schedule that a free tree allows: the tiles' keys, one tile after another, are cut into one
// part a thread, at any page.
class DynamicAttention {
 public:
  explicit DynamicAttention(Batch& batch) {
    const int64_t lanes = int64_t{batch.plan.rows()} * kHeads;
    const bool narrow = lanes < int64_t{2} * Pool().threads() * AttentionTile::kLanesMax;
    lanes_max_ = narrow ? kLanes : AttentionTile::kLanesMax;
    for (const SequenceRows& sequence : batch.plan.sequences) AddTiles(batch, sequence);
    CutPieces();
    for (int i = 0; i < Pool().threads(); ++i) scratch_.emplace_back();
    partials_.Get<float>(static_cast<int64_t>(pieces_.size()) * PartialFloats());
  }

  void Run() {
    float* partials = partials_.Get<float>(0);
    Pool().Run([&](int thread) {
      std::byte* scratch = scratch_[thread].Get<std::byte>(AttentionScratchBytes(kWidth));
      for (size_t i = 0; i < pieces_.size(); ++i) {
        const Piece& piece = pieces_[i];
        if (piece.thread != thread) continue;
        const Tile& tile = tiles_[piece.tile];
        Ops().attention_load(tile.lanes, scratch);
        Ops().attention_split(tile.lanes, tile.pages.data() + piece.begin / kPageTokens,
                              piece.begin, piece.end, scratch, partials + i * PartialFloats());
      }
    });
    Pool().Run([&](int thread) {
      for (size_t i = 0; i < pieces_.size();) {
        const size_t first = i++;
        const Tile& tile = tiles_[pieces_[first].tile];
        while (i < pieces_.size() && pieces_[i].tile == pieces_[first].tile) ++i;
        if (pieces_[first].tile % Pool().threads() != thread) continue;
        float* total = partials + first * PartialFloats();
        for (size_t next = first + 1; next < i; ++next) {
          Ops().attention_merge(tile.lanes, pieces_[next].begin, partials + next * PartialFloats(),
                                total);
        }
        Ops().attention_finish(tile.lanes, total, tile.out);
      }
    });
  }

 private:
  struct Tile {
    AttentionTile lanes;
    BF16* out[AttentionTile::kLanesMax];
    std::vector<const std::byte*> pages;  // and a null
    int keys = 0;
  };
  struct Piece {
    int tile;
    int begin;
    int end;
    int thread;
  };

  int64_t PartialFloats() const { return AttentionPartialFloats(kLayout.latent_dim, lanes_max_); }

  void AddTiles(Batch& batch, const SequenceRows& sequence) {
    const int lanes = sequence.row_count * kHeads;
    for (int begin = 0; begin < lanes; begin += lanes_max_) {
      Tile& tile = tiles_.emplace_back();
      tile.lanes.lanes = std::min(lanes_max_, lanes - begin);
      tile.lanes.stride = (tile.lanes.lanes + kLanes - 1) / kLanes * kLanes;
      tile.lanes.latent_dim = tile.lanes.value_dim = kLayout.latent_dim;
      tile.lanes.rope_dim = kLayout.rope_dim;
      tile.lanes.record_bytes = kLayout.record_bytes();
      tile.lanes.rope_offset_bytes = kLayout.rope_offset_bytes();
      tile.lanes.scale = 0.1f;
      for (int i = 0; i < tile.lanes.lanes; ++i) {
        const int64_t lane = int64_t{sequence.first_row} * kHeads + begin + i;
        tile.lanes.queries[i] = batch.query.data() + lane * kWidth;
        tile.lanes.positions[i] = batch.plan.positions[lane / kHeads];
        tile.out[i] = batch.output.data() + lane * kLayout.latent_dim;
      }
      tile.keys = tile.lanes.positions[tile.lanes.lanes - 1] + 1;
      for (int key = 0; key < tile.keys; key += kPageTokens) {
        const int page = batch.plan.pages[sequence.first_page + key / kPageTokens];
        tile.pages.push_back(batch.slab.data() + page * kLayout.page_bytes());
      }
      tile.pages.push_back(nullptr);
    }
  }

  void CutPieces() {
    int64_t total = 0;
    for (const Tile& tile : tiles_) total += tile.keys;
    const int threads = Pool().threads();
    int64_t done = 0;
    for (size_t t = 0; t < tiles_.size(); ++t) {
      for (int begin = 0; begin < tiles_[t].keys;) {
        const int thread = static_cast<int>(done * threads / total);
        const int64_t left = total * (thread + 1) / threads - done;
        const int64_t pages = std::max<int64_t>(1, (left + kPageTokens / 2) / kPageTokens);
        const auto end =
            static_cast<int>(std::min<int64_t>(tiles_[t].keys, begin + pages * kPageTokens));
        pieces_.push_back({static_cast<int>(t), begin, end, thread});
        done += end - begin;
        begin = end;
      }
    }
  }

  int lanes_max_ = 0;
  std::vector<Tile> tiles_;
  std::vector<Piece> pieces_;
  std::vector<ReusableMemory> scratch_;  // [threads]
  ReusableMemory partials_;
};

// Arguments: sequences, rows of each, records before them.
void Fixed(benchmark::State& state) {
  Batch batch(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)),
              static_cast<int>(state.range(2)));
  CpuAttention attention;
  attention.shape = {.heads = kHeads, .kv_rank = 512, .rope_dim = 64, .softmax_scale = 0.1f};
  const FmaGemmFamily family(Ops());
  GemmRunner gemms(Pool());
  const VectorAttention split_attention(Ops());
  AttentionRunner runner(family, split_attention, Ops(), Pool(), gemms);
  std::byte* const slabs[] = {batch.slab.data()};
  const KvView kv{kLayout, slabs, static_cast<int>(batch.plan.pages.size())};
  const int64_t rows = batch.plan.rows();
  for (auto _ : state) {
    runner.Attend({}, attention, batch.plan, kv, 0,
                  {DType::kBF16, rows, kHeads * kWidth, batch.query.data()},
                  {DType::kBF16, rows, kHeads * int64_t{512}, batch.output.data()});
  }
}

void Dynamic(benchmark::State& state) {
  Batch batch(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)),
              static_cast<int>(state.range(2)));
  DynamicAttention attention(batch);
  for (auto _ : state) attention.Run();
}

void Cases(benchmark::internal::Benchmark* of) {
  of->UseRealTime()->Unit(benchmark::kMillisecond);
  for (const int sequences : {1, 8, 32}) of->Args({sequences, 1, 8191});
  of->Args({1, 512, 0})->Args({1, 512, 8192});
}
BENCHMARK(Fixed)->Apply(Cases);
BENCHMARK(Dynamic)->Apply(Cases);

}  // namespace
}  // namespace epic::kernels

BENCHMARK_MAIN();
