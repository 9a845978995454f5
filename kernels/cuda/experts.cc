#include "kernels/cuda/experts.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cuda/limits.h"
#include "kernels/cuda/pairs.h"
#include "kernels/handle.h"

namespace epic::kernels::cuda {
namespace {

// Batches of fewer groups share a recording with those of eight: empty groups cost nothing but
// their entries in the tables.
constexpr int kGroupCapacityMin = 8;

int RoundUp(int64_t value, int unit) { return static_cast<int>((value + unit - 1) / unit * unit); }

const CudaMlp& Of(std::span<const Mlp* const> experts, const PairsByExpert::Group& group) {
  return HandleAs<CudaMlp>(*experts[group.expert]);
}

// Whether one launch can compute both: it has one type and one shape of weights.
bool SameKind(const CudaMlp& a, const CudaMlp& b) {
  const auto same = [](const DeviceMatrix& x, const DeviceMatrix& y) {
    return x.type == y.type && x.n == y.n && x.k == y.k;
  };
  return same(a.gate_up, b.gate_up) && same(a.down, b.down);
}

// Host arrays that go to the device as one.
class TableBuilder {
 public:
  // Offset in bytes.
  template <typename T>
  int64_t Add(std::span<const T> values) {
    const int64_t at = RoundUp(static_cast<int64_t>(bytes_.size()), 128);  // as maps want it
    bytes_.resize(at + values.size_bytes());
    if (!values.empty()) std::memcpy(bytes_.data() + at, values.data(), values.size_bytes());
    return at;
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace

DeviceRows MlpRunner::Input(RowForms forms, const BF16* x, int count, int columns) {
  DeviceRows input = {.columns = columns};
  if (forms.quantised) {
    // The stride is that of the bucket: PackRows, which may be replayed, has it among its
    // arguments, and all counts of a bucket must bring the same one.
    input = input_.Get({.quantised = true}, 1, BucketOf(count), columns);
    graphs_.RunOrRecord(
        QuantiseRows,
        {.rows = {.places = count}, .columns = columns, .x = x, .out = input.outputs()});
  }
  input.places = count;
  input.rounded = const_cast<BF16*>(x);
  return input;
}

void MlpRunner::Apply(const CudaMlp& mlp, Tensor rows, Tensor out) {
  const auto count = static_cast<int>(rows.rows);
  if (count == 0) return;
  const DeviceRows x = Input(RowForms::Of({&mlp.gate_up}), rows.As<BF16>(), count, mlp.gate_up.k);
  auto* gate_up = gate_up_.Get<float>(int64_t{count} * mlp.gate_up.n);
  products_.Multiply(mlp.gate_up, x, GemmOutput::kF32, gate_up);
  const DeviceRows product = product_.Get(RowForms::Of({&mlp.down}), 1, count, mlp.down.k);
  graphs_.RunOrRecord(SwiGlu, {.rows = {.places = count},
                               .columns = mlp.down.k,
                               .up_offset = mlp.up_offset,
                               .gate_up = gate_up,
                               .out = product.outputs()});
  products_.Multiply(mlp.down, product, GemmOutput::kBF16, out.data);
}

// Masked where groups are small or even, else contiguous: whichever pads less. Masked layouts have
// the same launches for any groups of a capacity, so small ones are rounded up to capacities and
// replayed.
MlpRunner::Batch MlpRunner::Place(std::span<const PairsByExpert::Group> groups) const {
  int64_t pairs = 0, largest = 0, segments = 0;
  for (const PairsByExpert::Group& group : groups) {
    pairs += group.count;
    largest = std::max(largest, group.count);
    segments += RoundUp(group.count, kSegmentRows);
  }
  Batch batch = {.groups = groups,
                 .places = static_cast<int>(largest),
                 .group_capacity = static_cast<int>(groups.size()),
                 .pair_capacity = static_cast<int>(pairs)};
  if (largest * batch.group_capacity > segments) {
    batch.layout = GemmLayout::kContiguous;
    batch.places = static_cast<int>(segments);
    return batch;
  }
  const int places = BucketOf(batch.places);
  const auto capacity = static_cast<int>(std::bit_ceil(groups.size()));
  if (!graphs_.enabled() || places > kBucketRowsMax || places * capacity > kBatchPlacesMax) {
    return batch;
  }
  batch.places = places;
  batch.group_capacity = std::max(capacity, kGroupCapacityMin);
  // Capacities are powers of two, so that few recordings serve all batches.
  batch.pair_capacity = static_cast<int>(std::bit_ceil(static_cast<uint64_t>(pairs)));
  batch.replayed = true;
  return batch;
}

void MlpRunner::Experts(std::span<const Mlp* const> experts, Tensor rows,
                        std::span<const ExpertRow> pairs, Tensor out) {
  if (pairs.empty()) return;
  order_.Sort(pairs, static_cast<int>(experts.size()));
  const std::span<const PairsByExpert::Group> groups = order_.groups();
  const auto count = static_cast<int>(rows.rows);
  const BF16* x = rows.As<BF16>();
  // Rows of another rank's frame lie in the process's memory, which no kernel may touch.
  if (!heap_.UseOf(x)) {
    auto* here = here_.Get<BF16>(rows.rows * rows.cols);
    runtime_.Upload(here, x, rows.bytes());
    x = here;
  }
  RowForms forms;
  for (const PairsByExpert::Group& group : groups) {
    (Of(experts, group).gate_up.type == GemmType::kE4M3 ? forms.quantised : forms.rounded) = true;
  }
  const DeviceRows input = Input(forms, x, count, static_cast<int>(rows.cols));

  // Answers for a frame go there by a copy, and the caller reads them on return.
  const std::optional<MemoryUse> use = heap_.UseOf(out.data);
  BF16* to = use ? out.As<BF16>() : out_.Get<BF16>(out.rows * out.cols);
  // A batch is a run of groups of one kind whose rows fit the scratch memory; one group always
  // fits.
  for (size_t first = 0; first < groups.size();) {
    size_t end = first + 1;
    while (end < groups.size() && SameKind(Of(experts, groups[first]), Of(experts, groups[end])) &&
           RoundUp(groups[end].first + groups[end].count - groups[first].first, kSegmentRows) <=
               kBatchPlacesMax) {
      ++end;
    }
    RunBatch(experts, pairs, Place(groups.subspan(first, end - first)), input, to);
    first = end;
  }
  if (!use) runtime_.Copy(out.data, to, out.bytes());
  // The caller may read host memory on return (backend.h). Answers in device memory are ordered by
  // the stream.
  if (!use || use == MemoryUse::kHost) runtime_.Wait();
}

MlpRunner::Tables MlpRunner::Upload(std::span<const Mlp* const> experts,
                                    std::span<const ExpertRow> pairs, const Batch& batch) {
  const bool masked = batch.layout == GemmLayout::kMasked;
  std::vector<int32_t> row, pair, place, group_rows, segment_group;
  std::vector<TensorMap> gate_up_maps, down_maps;
  std::vector<const float*> gate_up_scales, down_scales;
  const CudaMlp& first = Of(experts, batch.groups[0]);
  const int gate_up_tile = products_.ColumnTileFor(first.gate_up.type, batch.layout, batch.places);
  const int down_tile = products_.ColumnTileFor(first.down.type, batch.layout, batch.places);
  for (const PairsByExpert::Group& group : batch.groups) {
    const auto index = static_cast<int32_t>(group_rows.size());
    const auto begin =
        masked ? index * batch.places : static_cast<int32_t>(segment_group.size()) * kSegmentRows;
    for (int64_t i = 0; i < group.count; ++i) {
      const int32_t p = order_.pairs()[group.first + i];
      row.push_back(pairs[p].row);
      pair.push_back(p);
      place.push_back(begin + static_cast<int32_t>(i));
    }
    group_rows.push_back(static_cast<int32_t>(group.count));
    if (!masked) {
      const int segments = RoundUp(group.count, kSegmentRows) / kSegmentRows;
      segment_group.resize(segment_group.size() + segments, index);
    }
    const CudaMlp& mlp = Of(experts, group);
    gate_up_maps.push_back(mlp.gate_up_maps->of(gate_up_tile));
    down_maps.push_back(mlp.down_maps->of(down_tile));
    gate_up_scales.push_back(mlp.gate_up.scales);
    down_scales.push_back(mlp.down.scales);
  }
  // What fills the tables up: pairs without a place, and groups without rows. Their maps must still
  // be maps, since a kernel may prepare one before it sees that a group is empty.
  row.resize(batch.pair_capacity, 0);
  pair.resize(batch.pair_capacity, -1);
  place.resize(batch.pair_capacity, -1);
  group_rows.resize(batch.group_capacity, 0);
  gate_up_maps.resize(batch.group_capacity, gate_up_maps[0]);
  down_maps.resize(batch.group_capacity, down_maps[0]);
  gate_up_scales.resize(batch.group_capacity, nullptr);
  down_scales.resize(batch.group_capacity, nullptr);
  // One copy for all tables: they lie at fixed offsets as long as the capacities are the same, so a
  // replay finds them.
  TableBuilder builder;
  const auto add = [&]<typename T>(const std::vector<T>& values) {
    return builder.Add(std::span<const T>(values));
  };
  const int64_t at[] = {add(row),        add(pair),           add(place),
                        add(group_rows), add(segment_group),  add(gate_up_maps),
                        add(down_maps),  add(gate_up_scales), add(down_scales)};
  const auto bytes = static_cast<int64_t>(builder.bytes().size());
  auto* data = tables_.Get<std::byte>(bytes);
  runtime_.Upload(data, builder.bytes().data(), bytes);
  const auto integers = [&](int i) { return reinterpret_cast<const int32_t*>(data + at[i]); };
  return {.pairs = batch.pair_capacity,
          .row = integers(0),
          .pair = integers(1),
          .place = integers(2),
          .groups = {.layout = batch.layout,
                     .count = batch.group_capacity,
                     .segment_group = integers(4),
                     .group_rows = integers(3)},
          .gate_up_maps = reinterpret_cast<const TensorMap*>(data + at[5]),
          .down_maps = reinterpret_cast<const TensorMap*>(data + at[6]),
          .gate_up_scales = reinterpret_cast<const float* const*>(data + at[7]),
          .down_scales = reinterpret_cast<const float* const*>(data + at[8])};
}

void MlpRunner::RunBatch(std::span<const Mlp* const> experts, std::span<const ExpertRow> pairs,
                         const Batch& batch, const DeviceRows& x, BF16* out) {
  const CudaMlp& mlp = Of(experts, batch.groups[0]);
  const Tables tables = Upload(experts, pairs, batch);
  // The tables are on their way already: in the order of the stream they come before the launches.
  graphs_.Begin(batch.replayed);
  LaunchBatch(mlp, batch, tables, x, out);
  graphs_.Flush();
}

void MlpRunner::LaunchBatch(const CudaMlp& mlp, const Batch& batch, const Tables& tables,
                            const DeviceRows& x, BF16* out) {
  const bool masked = batch.layout == GemmLayout::kMasked;
  const int groups = masked ? tables.groups.count : 1;
  const bool fp8 = mlp.gate_up.type == GemmType::kE4M3;
  const DeviceRows packed =
      packed_.Get(RowForms::Of({&mlp.gate_up}), groups, batch.places, mlp.gate_up.k);
  graphs_.RunOrRecord(
      PackRows, {.pairs = tables.pairs,
                 .columns = mlp.gate_up.k * (fp8 ? 1 : 2),
                 .places = batch.places,
                 .row = tables.row,
                 .place = tables.place,
                 .codes = fp8 ? x.codes : reinterpret_cast<const uint8_t*>(x.rounded),
                 .scales = fp8 ? x.scales : nullptr,
                 .scale_stride = x.scale_stride,
                 .packed_codes = fp8 ? packed.codes : reinterpret_cast<uint8_t*>(packed.rounded),
                 .packed_scales = packed.scales,
                 .packed_scale_stride = packed.scale_stride});
  const int64_t places = int64_t{groups} * batch.places;
  auto* gate_up = gate_up_.Get<float>(places * mlp.gate_up.n);
  products_.MultiplyGroups(mlp.gate_up, tables.groups, tables.gate_up_maps, tables.gate_up_scales,
                           packed, GemmOutput::kF32, gate_up);
  const DeviceRows product =
      product_.Get(RowForms::Of({&mlp.down}), groups, batch.places, mlp.down.k);
  graphs_.RunOrRecord(SwiGlu, {.rows = {.groups = groups,
                                        .places = batch.places,
                                        .group_rows = masked ? tables.groups.group_rows : nullptr},
                               .columns = mlp.down.k,
                               .up_offset = mlp.up_offset,
                               .gate_up = gate_up,
                               .out = product.outputs()});
  auto* answers = answers_.Get<BF16>(places * mlp.down.n);
  products_.MultiplyGroups(mlp.down, tables.groups, tables.down_maps, tables.down_scales, product,
                           GemmOutput::kBF16, answers);
  // The way back is the same kernel, with places as rows and pairs as places.
  graphs_.RunOrRecord(PackRows, {.pairs = tables.pairs,
                                 .columns = mlp.down.n * 2,
                                 .places = 1,
                                 .row = tables.place,
                                 .place = tables.pair,
                                 .codes = reinterpret_cast<const uint8_t*>(answers),
                                 .packed_codes = reinterpret_cast<uint8_t*>(out)});
}

}  // namespace epic::kernels::cuda
