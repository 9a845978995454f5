#include "kernels/step_checks.h"

#include <algorithm>

#include "kernels/check.h"

namespace epic::kernels {
namespace {

// An empty tensor may point nowhere.
void CheckTensor(Tensor tensor, DType dtype, int64_t rows, int64_t cols) {
  KERNEL_CHECK_EQ(tensor.dtype, dtype);
  KERNEL_CHECK_EQ(tensor.rows, rows);
  KERNEL_CHECK_EQ(tensor.cols, cols);
  KERNEL_CHECK(tensor.data != nullptr || rows * cols == 0, "%ld rows of %ld", rows, cols);
}

// The rows and the page table of one sequence, of which `first_row` rows come before.
void CheckSequence(const StepPlan& plan, int index, int first_row) {
  const SequenceRows& sequence = plan.sequences[index];
  KERNEL_CHECK_EQ(sequence.first_row, first_row);
  KERNEL_CHECK_GT(sequence.row_count, 0);
  KERNEL_CHECK_GE(sequence.first_position, 0);
  KERNEL_CHECK_LE(first_row + sequence.row_count, plan.rows());
  for (int i = 0; i < sequence.row_count; ++i) {
    // Attention counts a row's keys by its position, so a sequence's rows must be consecutive.
    KERNEL_CHECK_EQ(plan.positions[first_row + i], sequence.first_position + i);
    KERNEL_CHECK_EQ(plan.row_sequence[first_row + i], index);
  }
  const int positions = sequence.first_position + sequence.row_count;
  // The page table must reach the last position: kernels may look it up unchecked.
  const int64_t pages = (positions + kPageTokens - 1) / kPageTokens;
  KERNEL_CHECK_GE(sequence.first_page, 0);
  KERNEL_CHECK_LE(sequence.first_page + pages, std::ssize(plan.pages));
}

}  // namespace

void StepChecks::Begin(const StepPlan& plan, const Rope& rope) {
  const auto rows = static_cast<size_t>(plan.rows());
  KERNEL_CHECK_EQ(plan.positions.size(), rows);
  KERNEL_CHECK_EQ(plan.row_sequence.size(), rows);
  KERNEL_CHECK(plan.roles.empty() || plan.roles.size() == rows, "%ld roles of %ld rows",
               std::ssize(plan.roles), std::ssize(plan.token_ids));
  // Sequences in order, without gaps: a row belongs to one of them.
  int covered = 0;
  for (int i = 0; i < std::ssize(plan.sequences); ++i) {
    CheckSequence(plan, i, covered);
    covered += plan.sequences[i].row_count;
  }
  KERNEL_CHECK_EQ(covered, plan.rows());
  int last = -1;
  for (const int32_t row : plan.logit_rows) {
    // Logit rows ascend without repetition, so each has one place among the logits.
    KERNEL_CHECK_GT(row, last);
    last = row;
  }
  KERNEL_CHECK_LT(last, plan.rows());
  // Compared with page_count when an operation brings the cache: once a layer, not once a page.
  page_end_ = 0;
  for (const int32_t page : plan.pages) {
    KERNEL_CHECK_GE(page, 0);
    page_end_ = std::max(page_end_, page + 1);
  }
  rope_pairs_ = static_cast<int>(rope.inverse_frequency.size());
}

void StepChecks::Embed(const StepPlan& plan, const SourceMatrix& table, Tensor residual) const {
  CheckSource(table);
  // There may be more rows than the plan's: those that fill a bucket (Backend::StepRows).
  KERNEL_CHECK_GE(residual.rows, plan.rows());
  CheckTensor(residual, DType::kF32, residual.rows, table.cols);
  for (const int32_t token : plan.token_ids) {
    // A token id is an index into mapped memory.
    KERNEL_CHECK(token >= 0 && token < table.rows, "token %d of %ld", token, table.rows);
  }
}

void StepChecks::Cache(const AttentionShape& shape, const KvView& kv, int layer) const {
  KERNEL_CHECK_EQ(kv.layout.type, kv_type_);
  KERNEL_CHECK_EQ(kv.layout.latent_dim, shape.kv_rank);
  KERNEL_CHECK_EQ(kv.layout.rope_dim, shape.rope_dim);
  KERNEL_CHECK(layer >= 0 && layer < std::ssize(kv.slabs), "layer %d of %ld", layer,
               std::ssize(kv.slabs));
  KERNEL_CHECK(kv.slabs[layer] != nullptr, "layer %d", layer);
  // One comparison covers every page of the step.
  KERNEL_CHECK_LE(page_end_, kv.page_count);
}

void StepChecks::AttentionIn(const AttentionShape& shape, const StepPlan& plan, const KvView& kv,
                             int layer, Tensor residual, Tensor query) const {
  Cache(shape, kv, layer);
  // The step's angles are those of this layer's pairs.
  KERNEL_CHECK_EQ(2 * rope_pairs_, shape.rope_dim);
  KERNEL_CHECK_GE(residual.rows, plan.rows());
  CheckTensor(residual, DType::kF32, residual.rows, shape.hidden);
  CheckTensor(query, DType::kBF16, residual.rows,
              int64_t{shape.heads} * (shape.kv_rank + shape.rope_dim));
}

void StepChecks::Attend(const AttentionShape& shape, const StepPlan& plan, const KvView& kv,
                        int layer, Tensor query, Tensor output) const {
  Cache(shape, kv, layer);
  // `plan` may be a slice, so its pages are those that Begin saw.
  KERNEL_CHECK_GE(query.rows, plan.rows());
  CheckTensor(query, DType::kBF16, query.rows,
              int64_t{shape.heads} * (shape.kv_rank + shape.rope_dim));
  CheckTensor(output, DType::kBF16, query.rows, int64_t{shape.heads} * shape.kv_rank);
}

void StepChecks::AttentionOut(const AttentionShape& shape, Tensor output, Tensor residual) {
  CheckTensor(output, DType::kBF16, residual.rows, int64_t{shape.heads} * shape.kv_rank);
  CheckTensor(residual, DType::kF32, residual.rows, shape.hidden);
}

void StepChecks::Norm(Tensor weight, Tensor residual, Tensor rows) {
  CheckTensor(weight, DType::kF32, 1, residual.cols);
  CheckTensor(residual, DType::kF32, residual.rows, residual.cols);
  CheckTensor(rows, DType::kBF16, residual.rows, residual.cols);
}

void StepChecks::ChooseExperts(const GateShape& shape, const GateResult& result) {
  const int64_t rows = result.rows.rows;
  CheckTensor(result.rows, DType::kBF16, rows, result.rows.cols);
  CheckTensor(result.experts, DType::kI32, rows, shape.top_k);
  CheckTensor(result.weights, DType::kF32, rows, shape.top_k);
  CheckTensor(result.faults, DType::kU8, rows, 1);
}

void StepChecks::Experts(std::span<const Mlp* const> experts, Tensor rows,
                         std::span<const ExpertRow> pairs, Tensor out) {
  CheckTensor(rows, DType::kBF16, rows.rows, rows.cols);
  CheckTensor(out, DType::kBF16, out.rows, rows.cols);
  KERNEL_CHECK_GE(out.rows, std::ssize(pairs));
  for (const ExpertRow& pair : pairs) {
    // Pairs may come from another rank's frame: an index that is out of range must not be used.
    KERNEL_CHECK(pair.row >= 0 && pair.row < rows.rows, "row %d of %ld", pair.row, rows.rows);
    KERNEL_CHECK(pair.expert >= 0 && pair.expert < std::ssize(experts), "expert %d of %ld",
                 pair.expert, std::ssize(experts));
    const Mlp* expert = experts[pair.expert];
    KERNEL_CHECK(expert != nullptr, "expert %d", pair.expert);
    KERNEL_CHECK_EQ(expert->hidden, rows.cols);
  }
}

void StepChecks::ApplyMlp(const Mlp& mlp, Tensor rows, Tensor out) {
  CheckTensor(rows, DType::kBF16, rows.rows, mlp.hidden);
  CheckTensor(out, DType::kBF16, rows.rows, mlp.hidden);
}

void StepChecks::Combine(Tensor shared, Tensor expert_rows, Tensor weights, Tensor residual) {
  CheckTensor(residual, DType::kF32, residual.rows, residual.cols);
  if (shared.data != nullptr) CheckTensor(shared, DType::kBF16, residual.rows, residual.cols);
  // A dense layer combines nothing but its MLP.
  if (weights.cols == 0) return;
  CheckTensor(weights, DType::kF32, residual.rows, weights.cols);
  CheckTensor(expert_rows, DType::kBF16, residual.rows * weights.cols, residual.cols);
}

void StepChecks::Head(const Matrix& head, const StepPlan& plan, Tensor norm, Tensor residual,
                      Tensor logits) {
  CheckTensor(residual, DType::kF32, residual.rows, head.cols);
  CheckTensor(norm, DType::kF32, 1, head.cols);
  CheckTensor(logits, DType::kF32, logits.rows, head.rows);
  KERNEL_CHECK_GE(logits.rows, std::ssize(plan.logit_rows));
  // They ascend: Begin has seen it.
  if (!plan.logit_rows.empty()) KERNEL_CHECK_LT(plan.logit_rows.back(), residual.rows);
}

void CheckSource(const SourceMatrix& source) {
  KERNEL_CHECK_GT(source.rows, 0);
  KERNEL_CHECK_GT(source.cols, 0);
  KERNEL_CHECK(source.data != nullptr);
  // FP8, INT8 and INT4 mean nothing without their scales.
  KERNEL_CHECK(source.scales != nullptr || source.scale_rows() == 0, "type %d",
               static_cast<int>(source.dtype));
}

void CheckMlpSources(const SourceMatrix& gate, const SourceMatrix& up, const SourceMatrix& down) {
  for (const SourceMatrix* source : {&gate, &up, &down}) CheckSource(*source);
  KERNEL_CHECK_EQ(up.rows, gate.rows);
  KERNEL_CHECK_EQ(up.cols, gate.cols);
  KERNEL_CHECK_EQ(down.rows, gate.cols);
  KERNEL_CHECK_EQ(down.cols, gate.rows);
}

void CheckAttentionSource(const AttentionSource& source) {
  const AttentionShape& shape = source.shape;
  const auto check = [](const SourceMatrix& matrix, int64_t rows, int64_t cols) {
    CheckSource(matrix);
    KERNEL_CHECK_EQ(matrix.rows, rows);
    KERNEL_CHECK_EQ(matrix.cols, cols);
  };
  const int64_t heads = shape.heads;
  KERNEL_CHECK_EQ(std::ssize(source.input_norm), shape.hidden);
  KERNEL_CHECK_EQ(std::ssize(source.kv_a_norm), shape.kv_rank);
  if (shape.q_rank > 0) {
    KERNEL_CHECK_EQ(std::ssize(source.q_a_norm), shape.q_rank);
    check(source.q_a, shape.q_rank, shape.hidden);
  }
  check(source.q, heads * (shape.nope_dim + shape.rope_dim),
        shape.q_rank > 0 ? shape.q_rank : shape.hidden);
  check(source.kv_a, shape.kv_rank + shape.rope_dim, shape.hidden);
  check(source.kv_b, heads * (shape.nope_dim + shape.v_dim), shape.kv_rank);
  check(source.o, shape.hidden, heads * shape.v_dim);
}

void CheckGateSource(const GateShape& shape, const SourceMatrix& weight,
                     std::span<const float> correction_bias) {
  CheckSource(weight);
  KERNEL_CHECK_EQ(weight.rows, shape.experts);
  KERNEL_CHECK(shape.top_k > 0 && shape.top_k <= shape.experts, "top_k %d of %d experts",
               shape.top_k, shape.experts);
  KERNEL_CHECK(correction_bias.empty() || std::ssize(correction_bias) == shape.experts);
}

}  // namespace epic::kernels
