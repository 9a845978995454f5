#include "kernels/cuda/attention.h"

namespace epic::kernels::cuda {

void AttentionRunner::In(const CudaAttention& attention, const StepArrays& arrays, const KvView& kv,
                         int layer, Tensor residual, Tensor query) {
  const AttentionShape& shape = attention.shape;
  const auto rows = static_cast<int>(residual.rows);
  const Stream stream = runtime_.stream();
  const DeviceMatrix& first = shape.q_rank > 0 ? attention.q_a : attention.q;
  const DeviceRows x = normed_.Get(RowForms::Of({&first, &attention.kv_a}), 1, rows, shape.hidden);
  RmsNorm(stream, {.rows = rows,
                   .columns = shape.hidden,
                   .x = residual.As<float>(),
                   .x_stride = shape.hidden,
                   .weight = attention.input_norm.data,
                   .eps = shape.norm_eps,
                   .out = x.outputs()});

  auto* latent = kv_.Get<float>(int64_t{rows} * (shape.kv_rank + shape.rope_dim));
  products_.Multiply(attention.kv_a, x, GemmOutput::kF32, latent);
  const RopeTables rope = arrays.rope(shape.rope_interleaved);
  WriteRecords(stream, {.rows = rows,
                        .layout = kv.layout,
                        .kv = latent,
                        .weight = attention.kv_a_norm.data,
                        .eps = shape.inner_norm_eps,
                        .rope = rope,
                        .slab = kv.slabs[layer],
                        .record_index = arrays.record_index});

  const float* q = Query(attention, x);
  auto* nope = nope_.Get<BF16>(int64_t{rows} * shape.heads * shape.nope_dim);
  SplitQuery(stream, {.rows = rows,
                      .heads = shape.heads,
                      .nope_dim = shape.nope_dim,
                      .rope_dim = shape.rope_dim,
                      .latent_dim = shape.kv_rank,
                      .q = q,
                      .rope = rope,
                      .nope = nope,
                      .query = query.As<BF16>()});
  products_.MultiplyHeads(attention.w_uk.data, shape.heads, shape.kv_rank, shape.nope_dim, rows,
                          nope, query.As<BF16>(), shape.kv_rank + shape.rope_dim);
}

const float* AttentionRunner::Query(const CudaAttention& attention, const DeviceRows& x) {
  const AttentionShape& shape = attention.shape;
  auto* q = q_.Get<float>(int64_t{x.places} * attention.q.n);
  if (shape.q_rank == 0) {
    products_.Multiply(attention.q, x, GemmOutput::kF32, q);
    return q;
  }
  auto* low = low_.Get<float>(int64_t{x.places} * shape.q_rank);
  products_.Multiply(attention.q_a, x, GemmOutput::kF32, low);
  const DeviceRows normed =
      low_normed_.Get(RowForms::Of({&attention.q}), 1, x.places, shape.q_rank);
  RmsNorm(runtime_.stream(), {.rows = x.places,
                              .columns = shape.q_rank,
                              .x = low,
                              .x_stride = shape.q_rank,
                              .weight = attention.q_a_norm.data,
                              .eps = shape.inner_norm_eps,
                              .out = normed.outputs()});
  products_.Multiply(attention.q, normed, GemmOutput::kF32, q);
  return q;
}

void AttentionRunner::Attend(const CudaAttention& attention, const StepArrays& arrays,
                             const StepArrays::Mla& mla, const KvView& kv, int layer, Tensor query,
                             Tensor output) {
  const AttentionShape& shape = attention.shape;
  MlaDecode(
      runtime_.stream(),
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
  // The product rounds them once; quantisation starts from there.
  RowForms forms = RowForms::Of({&attention.o});
  forms.rounded = true;
  const DeviceRows values = value_rows_.Get(forms, 1, rows, width);
  products_.MultiplyHeads(attention.w_uv.data, shape.heads, shape.v_dim, shape.kv_rank, rows,
                          output.As<BF16>(), values.rounded, shape.v_dim);
  if (forms.quantised) {
    RowOutputs codes = values.outputs();
    codes.rounded = nullptr;
    QuantiseRows(runtime_.stream(),
                 {.rows = {.places = rows}, .columns = width, .x = values.rounded, .out = codes});
  }
  products_.Multiply(attention.o, values, GemmOutput::kAddF32, residual.data);
}

}  // namespace epic::kernels::cuda
