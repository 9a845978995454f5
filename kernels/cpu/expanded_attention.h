// Attention of the rows of prompts with keys and values expanded: each head's own from the latents,
// K = W_UK·latent and V = W_UV·latent, rounded once to BF16. More work for each key, less for each
// pair of row and key than absorbed attention: it pays for long chunks.
//
// A sequence's keys are expanded in ranges of whole splits that fit kRecordsBytesMax, and each
// range's splits are added to what the ranges before it gave, in order. Other rows' keys are
// expanded again in the next chunk: nothing but the KV records is kept.
#pragma once

#include <atomic>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_weights.h"
#include "kernels/cpu/gemm_runner.h"
#include "kernels/cpu/split_attention.h"
#include "kernels/cpu/vector_ops.h"

namespace epic::kernels {

// How many of the sequence's rows, from its first on, attend expanded.
inline int ExpandedRows(const CpuAttention& attention, const SequenceRows& sequence) {
  return attention.w_k.empty() ? 0 : sequence.first_rows_of_prompt();
}

class ExpandedAttention {
 public:
  ExpandedAttention(const GemmFamily& family, const SplitAttention& attention, const VectorOps& ops,
                    ThreadPool& pool, GemmRunner& gemms)
      : family_(family),
        attention_(attention),
        ops_(ops),
        pool_(pool),
        gemms_(gemms),
        scratch_(pool.threads()) {}

  // Writes row `row` of values [heads·v_dim] for each row that attends expanded. Its q_nope
  // [heads·nope_dim] stands in `nope`, its rotated q_rope in `query` as Backend::AttentionIn leaves
  // it, and the rows' records must have been written.
  void Attend(const CpuAttention& attention, const StepPlan& plan, const KvView& kv, int layer,
              const BF16* nope, Tensor query, BF16* values);

 private:
  struct Sequence;
  // Keys [begin, end) of a sequence, which are expanded at once.
  struct Range {
    int begin;
    int end;
    int count() const { return end - begin; }
  };

  void AttendSequence(const Sequence& sequence);
  void AddExpanding(const Sequence& sequence, const Range& range, std::byte* records);
  void AddTiles(const Sequence& sequence, const Range& range, const std::byte* records,
                float* totals);
  void RunTile(const Sequence& sequence, const Range& range, int head, int first_row,
               const std::byte* records, int thread, float* total);

  const GemmFamily& family_;
  const SplitAttention& attention_;
  const VectorOps& ops_;
  ThreadPool& pool_;
  GemmRunner& gemms_;
  // Threads draw tiles from this counter; which thread computes a tile changes no bit.
  std::atomic<int> next_task_ = 0;
  std::vector<ReusableMemory> scratch_;  // [threads]
  ReusableMemory latents_, records_, totals_;
};

}  // namespace epic::kernels
