// The duties that Backend leaves to its callers, checked where each operation begins. Every backend
// calls them: the reference, the CPU and the CUDA backend then refuse the same mistakes, with the
// same words, before they read or write beyond a tensor or a page.
//
// A check looks at shapes, and at each index once: a step's plan in Begin, an operation's pairs in
// Experts. It never looks at values of rows.
#pragma once

#include <span>

#include "kernels/backend.h"

namespace epic::kernels {

class StepChecks {
 public:
  explicit StepChecks(KvType kv_type) : kv_type_(kv_type) {}

  // The plan's arrays fit each other: sequences cover the rows in order, positions ascend from each
  // first_position by one, page tables cover the positions, logit rows ascend.
  void Begin(const StepPlan& plan, const Rope& rope);

  void Embed(const StepPlan& plan, const SourceMatrix& table, Tensor residual) const;
  void AttentionIn(const AttentionShape& shape, const StepPlan& plan, const KvView& kv, int layer,
                   Tensor residual, Tensor query) const;
  void Attend(const AttentionShape& shape, const StepPlan& plan, const KvView& kv, int layer,
              Tensor query, Tensor output) const;
  static void AttentionOut(const AttentionShape& shape, Tensor output, Tensor residual);
  static void Norm(Tensor weight, Tensor residual, Tensor rows);
  static void ChooseExperts(const GateShape& shape, const GateResult& result);
  // Each pair names a row, and an expert that is there and has the rows' width.
  static void Experts(std::span<const Mlp* const> experts, Tensor rows,
                      std::span<const ExpertRow> pairs, Tensor out);
  static void ApplyMlp(const Mlp& mlp, Tensor rows, Tensor out);
  static void Combine(Tensor shared, Tensor expert_rows, Tensor weights, Tensor residual);
  static void Head(const Matrix& head, const StepPlan& plan, Tensor norm, Tensor residual,
                   Tensor logits);

 private:
  void Cache(const AttentionShape& shape, const KvView& kv, int layer) const;

  const KvType kv_type_;
  int page_end_ = 0;    // above every page of the step
  int rope_pairs_ = 0;  // of the step
};

// Sources of weights, before a backend reads them: data is there, with scales where the type has
// them, and sizes are positive.
void CheckSource(const SourceMatrix& source);
void CheckMlpSources(const SourceMatrix& gate, const SourceMatrix& up, const SourceMatrix& down);
void CheckAttentionSource(const AttentionSource& source);
void CheckGateSource(const GateShape& shape, const SourceMatrix& weight,
                     std::span<const float> correction_bias);

}  // namespace epic::kernels
