// MLA of the oracle: Backend::AttentionIn, Attend and AttentionOut, a row and a head at a time.
// Nothing is shared between rows but the expanded keys of a sequence, which are the same for all.
#pragma once

#include <cstddef>
#include <map>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "kernels/backend.h"
#include "kernels/reference/attend.h"
#include "kernels/reference/reference_weights.h"
#include "kernels/reference/rows.h"
#include "kernels/reference/shadow.h"
#include "kernels/rope_table.h"

namespace epic::kernels {

// What AttentionIn leaves for a layer's Attend and AttentionOut beside the tensors.
struct ReferenceAttentionStep {
  std::vector<Row> nope;             // [T] q_nope of all heads, for rows that attend expanded
  std::vector<Row> expanded_values;  // [T] the heads' values, from Attend; empty: absorbed
};

class ReferenceAttentionRunner {
 public:
  // Without `rounded` records have FP32 twins, found by address, and rows those of `shadows`.
  // `expanded`: rows of prompts attend expanded.
  ReferenceAttentionRunner(AttendSplit attend_split, bool rounded, bool expanded,
                           ShadowRows& shadows)
      : attend_split_(attend_split), rounded_(rounded), expanded_(expanded), shadows_(shadows) {}

  ReferenceAttentionStep In(const ReferenceAttention& attention, const StepPlan& plan,
                            const RopeTable& rope, const KvView& kv, int layer, Tensor residual,
                            Tensor query);
  void Attend(ReferenceAttentionStep& step, const ReferenceAttention& attention,
              const StepPlan& plan, const KvView& kv, int layer, Tensor query, Tensor output) const;
  void Out(const ReferenceAttentionStep& step, const ReferenceAttention& attention, Tensor output,
           Tensor residual) const;

 private:
  // Keyed by sequence, head and position.
  using ExpandedKeys = std::map<std::tuple<int, int, int>, KeyAndValue>;

  Row Round(Row values) const;
  bool IsExpanded(const StepPlan& plan, int row) const;
  Row Query(const ReferenceAttention& attention, const RopeTable& rope, const Row& x, int row,
            Row& nope) const;
  void WriteRecord(const ReferenceAttention& attention, const RopeTable& rope,
                   const Row& latent_and_rope, int row, const StepPlan& plan, const KvView& kv,
                   int layer);
  Row ReadRecord(const KvLayout& layout, const std::byte* from) const;
  Row AttendAbsorbed(const ReferenceAttention& attention, const StepPlan& plan, const KvView& kv,
                     int layer, int row, const Row& query) const;
  Row AttendExpanded(const ReferenceAttention& attention, const StepPlan& plan, const KvView& kv,
                     int layer, int row, const Row& nope, const Row& query,
                     ExpandedKeys& keys) const;

  const AttendSplit attend_split_;
  const bool rounded_;
  const bool expanded_;
  ShadowRows& shadows_;
  std::unordered_map<const std::byte*, Row> records_;  // FP32 twins
};

}  // namespace epic::kernels
