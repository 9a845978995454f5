#include "kernels/cuda/products.h"

namespace epic::kernels::cuda {
namespace {

constexpr int kScaleStrideUnit = 4;  // floats: strides of bulk copies are multiples of 16 bytes

// The part of a product's arguments that follows from `x` and the type of weight that it meets.
BlockGemmArguments ArgumentsOf(GemmType type, const DeviceRows& x) {
  const bool fp8 = type == GemmType::kE4M3;
  return {.type = type,
          .rows = x.places,
          .k = x.columns,
          .x = fp8 ? static_cast<const void*>(x.codes) : x.rounded,
          .x_scale = x.scales,
          .x_scale_stride = x.scale_stride};
}

}  // namespace

RowForms RowForms::Of(std::initializer_list<const DeviceMatrix*> weights) {
  RowForms forms;
  for (const DeviceMatrix* weight : weights) {
    (weight->type == GemmType::kE4M3 ? forms.quantised : forms.rounded) = true;
  }
  return forms;
}

DeviceRows RowScratch::Get(RowForms forms, int groups, int places, int columns) {
  // Scales stand block by block of columns with the rows of a block side by side, so that a tile of
  // rows reads them in one copy.
  DeviceRows rows = {.groups = groups, .places = places, .columns = columns};
  const int64_t values = int64_t{groups} * places * columns;
  if (forms.rounded) rows.rounded = rounded_.Get<BF16>(values);
  if (forms.quantised) {
    const int64_t blocks = (columns + kScaleBlock - 1) / kScaleBlock;
    // The stride is rounded up here, so that every matrix of scales can be copied by boxes.
    rows.scale_stride = (places + kScaleStrideUnit - 1) / kScaleStrideUnit * kScaleStrideUnit;
    rows.codes = codes_.Get<uint8_t>(values);
    rows.scales = scales_.Get<float>(groups * blocks * rows.scale_stride);
  }
  return rows;
}

void Products::Multiply(const DeviceMatrix& w, const DeviceRows& x, GemmOutput output,
                        void* out) const {
  BlockGemmArguments a = ArgumentsOf(w.type, x);
  a.n = w.n;
  a.w = w.data;
  a.w_scale = w.scales;
  a.output = output;
  a.out = out;
  Launch(a);
}

void Products::MultiplyHeads(const BF16* w, int heads, int n, int k, int rows, const BF16* x,
                             BF16* out, int out_stride) const {
  // Heads are groups that lie between one another in x and out: strides reach them, so nothing is
  // moved.
  Launch({.type = GemmType::kBF16,
          .layout = GemmLayout::kMasked,
          .groups = heads,
          .rows = rows,
          .n = n,
          .k = k,
          .x = x,
          .x_row_stride = int64_t{heads} * k,
          .x_group_stride = k,
          .w = w,
          .output = GemmOutput::kBF16,
          .out = out,
          .out_row_stride = int64_t{heads} * out_stride,
          .out_group_stride = out_stride});
}

void Products::MultiplyGroups(const DeviceMatrix& shape, const RowGroups& groups,
                              const TensorMap* maps, const float* const* scales,
                              const DeviceRows& x, GemmOutput output, void* out) const {
  BlockGemmArguments a = ArgumentsOf(shape.type, x);
  a.layout = groups.layout;
  a.groups = groups.count;
  a.n = shape.n;
  a.w_maps = maps;
  a.w_scales = scales;
  a.segment_group = groups.segment_group;
  a.group_rows = groups.group_rows;
  a.output = output;
  a.out = out;
  Launch(a);
}

// The tile follows from the type, the layout and the number of rows: launches that come again have
// the same one.
void Products::Launch(BlockGemmArguments a) const {
  a.sm_count = runtime_.sm_count();
  a.row_tile = tiles_.For(a.type, a.layout, a.rows);
  graphs_.RunOrRecord(BlockGemm, a);
}

}  // namespace epic::kernels::cuda
