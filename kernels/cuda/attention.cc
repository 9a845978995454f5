#include "kernels/cuda/attention.h"

namespace epic::kernels::cuda {

void AttentionRunner::In(const CudaAttention& attention, const StepArrays& arrays, const KvView& kv,
                         int layer, Tensor residual, Tensor query) {
  const AttentionShape& shape = attention.shape;
  const auto rows = static_cast<int>(residual.rows);
  const DeviceRows x = normed_.Get(RowForms::Of({&attention.first}), 1, rows, shape.hidden);
  graphs_.RunOrRecord(RmsNorm, {.rows = rows,
                                .columns = shape.hidden,
                                .x = residual.As<float>(),
                                .x_stride = shape.hidden,
                                .weight = attention.input_norm.data,
                                .eps = shape.norm_eps,
                                .out = x.outputs()});
  // q_a (or q) and kv_a are one product: one read of the normed rows, one launch.
  const int first_width = attention.first.n;
  auto* first = first_.Get<float>(int64_t{rows} * first_width);
  products_.Multiply(attention.first, x, GemmOutput::kF32, first);

  // Records are written before any row attends: a row's own key is read as stored. kv_a's part of
  // the joint product begins at kv_row, which FP8's blocks of 128 scales may put past q_a's end.
  const RopeTables rope = arrays.rope(shape.rope_interleaved);
  graphs_.RunOrRecord(WriteRecords, {.rows = rows,
                                     .layout = kv.layout,
                                     .kv = first + attention.kv_row,
                                     .kv_stride = first_width,
                                     .weight = attention.kv_a_norm.data,
                                     .eps = shape.inner_norm_eps,
                                     .rope = rope,
                                     .slab = kv.slabs[layer],
                                     .record_index = arrays.record_index});

  const bool low_rank = shape.q_rank > 0;
  auto* nope = nope_.Get<BF16>(int64_t{rows} * shape.heads * shape.nope_dim);
  graphs_.RunOrRecord(SplitQuery, {.rows = rows,
                                   .heads = shape.heads,
                                   .nope_dim = shape.nope_dim,
                                   .rope_dim = shape.rope_dim,
                                   .latent_dim = shape.kv_rank,
                                   .q = low_rank ? QueryOf(attention, rows, first) : first,
                                   .q_stride = low_rank ? attention.q_b.n : first_width,
                                   .rope = rope,
                                   .nope = nope,
                                   .query = query.As<BF16>()});
  // W_UKᵀ·q_nope goes beside the rotated part that SplitQuery left in `query`.
  products_.MultiplyHeads(attention.w_uk.data, shape.heads, shape.kv_rank, shape.nope_dim, rows,
                          nope, query.As<BF16>(), shape.kv_rank + shape.rope_dim);
}

const float* AttentionRunner::QueryOf(const CudaAttention& attention, int rows, const float* low) {
  const int q_rank = attention.shape.q_rank;
  // `low` has the rows of the joint product: q_a's values are their first columns, and their width
  // is the stride.
  const DeviceRows normed = low_normed_.Get(RowForms::Of({&attention.q_b}), 1, rows, q_rank);
  graphs_.RunOrRecord(RmsNorm, {.rows = rows,
                                .columns = q_rank,
                                .x = low,
                                .x_stride = attention.first.n,
                                .weight = attention.q_a_norm.data,
                                .eps = attention.shape.inner_norm_eps,
                                .out = normed.outputs()});
  auto* q = q_.Get<float>(int64_t{rows} * attention.q_b.n);
  products_.Multiply(attention.q_b, normed, GemmOutput::kF32, q);
  return q;
}

void AttentionRunner::Attend(const CudaAttention& attention, const StepArrays& arrays,
                             const StepArrays::Mla& mla, const KvView& kv, int layer, Tensor query,
                             Tensor output) {
  // A launch for any plan asks for the most partial rows that any of them needs (ForAnyPlan), so
  // that a replay never runs into memory that it lacks.
  const AttentionShape& shape = attention.shape;
  graphs_.RunOrRecord(
      MlaDecode,
      {.kv_type = kv.layout.type,
       .rows = static_cast<int>(query.rows),
       .heads = shape.heads,
       .latent_dim = shape.kv_rank,
       .softmax_scale = shape.softmax_scale,
       .query = query.As<BF16>(),
       .slab = kv.slabs[layer],
       .page_count = kv.page_count,
       .pages = arrays.pages,
       .positions = arrays.positions,
       .tiles = mla.tiles,
       .units = mla.units,
       .tile_count = mla.tile_count,
       .unit_count = mla.unit_count,
       .counts = mla.counts,
       .partial_values = partial_values_.Get<float>(int64_t{mla.partial_rows} * shape.kv_rank),
       .partial_states = partial_states_.Get<MlaState>(mla.partial_rows),
       .out = output.As<BF16>(),
       .sm_count = runtime_.sm_count()});
}

void AttentionRunner::Out(const CudaAttention& attention, Tensor output, Tensor residual) {
  const AttentionShape& shape = attention.shape;
  const auto rows = static_cast<int>(output.rows);
  const int width = shape.heads * shape.v_dim;
  // MultiplyHeads writes BF16, the one rounding that the profile has here; an FP8 o projection
  // quantises these rounded values, so the rounded form is needed in either case.
  RowForms forms = RowForms::Of({&attention.o});
  forms.rounded = true;
  const DeviceRows values = value_rows_.Get(forms, 1, rows, width);
  products_.MultiplyHeads(attention.w_uv.data, shape.heads, shape.v_dim, shape.kv_rank, rows,
                          output.As<BF16>(), values.rounded, shape.v_dim);
  if (forms.quantised) {
    RowOutputs codes = values.outputs();
    // The rounded rows are this launch's input: codes and scales alone are written.
    codes.rounded = nullptr;
    graphs_.RunOrRecord(
        QuantiseRows,
        {.rows = {.places = rows}, .columns = width, .x = values.rounded, .out = codes});
  }
  // The product adds into the FP32 residual itself, so no rounding comes between.
  products_.Multiply(attention.o, values, GemmOutput::kAddF32, residual.data);
}

}  // namespace epic::kernels::cuda
