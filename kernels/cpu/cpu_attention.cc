#include "kernels/cpu/cpu_attention.h"

#include <algorithm>
#include <cstring>

#include "kernels/check.h"
#include "kernels/kv_record.h"
#include "kernels/math.h"

namespace epic::kernels {
namespace {

void Rotate(const RopeTable& table, int64_t row, bool interleaved, const float* x, float* y) {
  const int pairs = table.pairs;
  const float* cos = table.cos.data() + row * pairs;
  const float* sin = table.sin.data() + row * pairs;
  for (int i = 0; i < pairs; ++i) {
    const int first = interleaved ? 2 * i : i;
    const int second = interleaved ? 2 * i + 1 : i + pairs;
    const float x1 = x[first];
    const float x2 = x[second];
    // The order is that of the oracle's Rotate (kernels/reference/rows.cc).
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

}  // namespace

const float* AttentionRunner::AddProjections(const CpuAttention& attention, int64_t rows,
                                             const BF16* normed, float* kv_a) {
  // One Products for both weights: their rows are prepared once, and threads share both.
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

  // Between the two products the rows are rounded once to BF16, as every normed row is.
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
  // A record that is written beyond the cache would be another sequence's, or anything's.
  KERNEL_CHECK(page >= 0 && page < kv.page_count, "page %ld of %d", page, kv.page_count);
  std::byte* record = kv.slabs[layer] + page * kv.layout.page_bytes() +
                      position % kPageTokens * kv.layout.record_bytes();
  // Padding too: a page's bytes must be the same on every device and after every reuse.
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

void AttentionRunner::Out(const AttentionStep& step, const CpuAttention& attention, Tensor output,
                          Tensor residual) {
  // `step` must be of the same layer: it says which rows were absorbed.
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
    // Jobs are head by head, and in a head range by range (JobsOfHeads).
    const int64_t column = int64_t{block.job / ranges} * shape.v_dim + block.n_begin;
    for (int64_t t = block.row_begin; t < block.row_end; ++t) {
      ops_.to_bf16(block.Row(t), block.columns(), values + (first + t) * columns + column);
    }
  });
  gemms_.Products(family_, {{values, columns, rows, attention.o, {}}}, [&](const GemmBlock& block) {
    for (int64_t t = block.row_begin; t < block.row_end; ++t) {
      // Each value of the residual is one thread's, so nothing is added twice or lost.
      ops_.add(block.Row(t), block.columns(), residual.Row<float>(t) + block.n_begin);
    }
  });
  gemms_.Run();
}

}  // namespace epic::kernels
