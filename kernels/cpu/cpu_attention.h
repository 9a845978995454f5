// MLA on the CPU: the three sub-layers of attention. Rows attend absorbed, or, where they are of a
// prompt and the weights are loaded for it, expanded.
//
//   AttentionStep step = runner.In(attention, plan, rope, kv, layer, residual, query);
//   runner.Attend(step, attention, plan, kv, layer, query, output);   // or some rows at a time
//   runner.Out(step, attention, output, residual);
//
// The arguments and their shapes are those of Backend::AttentionIn, Attend and AttentionOut.
#pragma once

#include <atomic>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_weights.h"
#include "kernels/cpu/expanded_attention.h"
#include "kernels/cpu/gemm_runner.h"
#include "kernels/cpu/split_attention.h"
#include "kernels/cpu/vector_ops.h"
#include "kernels/rope_table.h"

namespace epic::kernels {

// Rows of a step that stand together: [begin, end).
struct RowRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// What one layer's In leaves for its Attend and Out, beside the tensors that the caller holds. The
// memory is the runner's and valid until its next In.
struct AttentionStep {
  const CpuAttention* attention = nullptr;  // the layer's
  int64_t rows = 0;
  std::vector<RowRange> absorbed;  // the rows that attend absorbed, ascending
  // [rows, heads·nope_dim], BF16: the q_nope of each row; rows that attend expanded need it.
  const BF16* nope = nullptr;
  // [rows, heads·v_dim], BF16: the heads' values. Attend writes those of rows that attend expanded,
  // Out those of all others.
  BF16* values = nullptr;
};

// One operation at a time. Results have the same bits for any number of threads.
class AttentionRunner {
 public:
  AttentionRunner(const GemmFamily& family, const SplitAttention& attention, const VectorOps& ops,
                  ThreadPool& pool, GemmRunner& gemms)
      : family_(family),
        attention_(attention),
        ops_(ops),
        pool_(pool),
        gemms_(gemms),
        expanded_(family, attention, ops, pool, gemms),
        scratch_(pool.threads()) {}

  AttentionStep In(const CpuAttention& attention, const StepPlan& plan, const RopeTable& rope,
                   const KvView& kv, int layer, Tensor residual, Tensor query);
  // Where rows attend expanded, `plan` is the whole step's; otherwise it may be a slice, and `step`
  // is not read.
  void Attend(const AttentionStep& step, const CpuAttention& attention, const StepPlan& plan,
              const KvView& kv, int layer, Tensor query, Tensor output);
  void Out(const AttentionStep& step, const CpuAttention& attention, Tensor output,
           Tensor residual);

 private:
  struct Tile;
  struct Keys;
  struct Task {
    size_t tile;
    int split;
  };
  // Adds the products that fill kv_a and the q that is returned.
  const float* AddProjections(const CpuAttention& attention, int64_t rows, const BF16* normed,
                              float* kv_a);
  void WriteRow(const CpuAttention& attention, const StepPlan& plan, const RopeTable& rope,
                const KvView& kv, int layer, int64_t row, const float* q, const float* kv_a,
                BF16* nope, BF16* query) const;
  std::vector<Tile> MakeTiles(const CpuAttention& attention, const StepPlan& plan, const KvView& kv,
                              Tensor query, Tensor output, int lanes_max) const;
  void RunSplit(const Tile& tile, const Keys& keys, int split, std::byte* scratch,
                float* partial) const;
  void RunTile(const Tile& tile, const Keys& keys, std::byte* scratch, float* total,
               float* partial) const;
  // AddTiles serves many tiles, AddSplits few tiles of many splits: both give the same bits.
  void AddTiles(const std::vector<Tile>& tiles, const Keys& keys, int64_t cost);
  void AddSplits(const std::vector<Tile>& tiles, const Keys& keys, int64_t cost);

  const GemmFamily& family_;
  const SplitAttention& attention_;
  const VectorOps& ops_;
  ThreadPool& pool_;
  GemmRunner& gemms_;
  ExpandedAttention expanded_;
  // Threads draw tasks from this counter; which thread computes a tile changes no bit.
  std::atomic<size_t> next_task_ = 0;
  std::vector<Task> tasks_;
  std::vector<ReusableMemory> scratch_;  // [threads]
  ReusableMemory normed_, q_low_, q_low_normed_, q_, kv_a_, nope_, values_, partials_;
};

}  // namespace epic::kernels
