#include "kernels/cuda/weights.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/kv_b.h"
#include "kernels/number.h"

namespace epic::kernels::cuda {
namespace {

constexpr int64_t kRowBytesUnit = 16;  // of a row of K, for bulk copies
// Values that are converted on the host go to the device in pieces of 2 MiB. Chosen.
constexpr int64_t kChunkValues = int64_t{1} << 20;
constexpr int kRouterPartsMax = 3;  // of 8 bits each: FP32

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

int64_t BytesOf(const DeviceMatrix& matrix) {
  return matrix.memory->bytes() +
         (matrix.scale_memory == nullptr ? 0 : matrix.scale_memory->bytes());
}
template <typename T>
int64_t BytesOf(const DeviceArray<T>& array) {
  return array.memory == nullptr ? 0 : array.memory->bytes();
}

// `part` becomes the values rounded to BF16, and `values` what the rounding left. The rest is
// exact: the difference of a number and its rounding has few enough bits for FP32. Returns false if
// the part is all zeros.
bool TakePart(std::vector<float>& values, std::vector<BF16>& part) {
  bool any = false;
  part.resize(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    part[i] = ToBF16(values[i]);
    any |= ToFloat(part[i]) != 0;
    values[i] -= ToFloat(part[i]);
  }
  return any;
}

}  // namespace

void WeightLoader::LoadBF16(const SourceMatrix& source, std::byte* to) const {
  DeviceRuntime& runtime = heap_.runtime();
  // BF16 goes up straight from the mapped checkpoint and is not converted.
  if (source.dtype == DType::kBF16) return runtime.Upload(to, source.data, source.data_bytes());
  const int64_t chunk_rows = std::max<int64_t>(1, kChunkValues / source.cols);
  std::vector<float> row(source.cols);
  std::vector<BF16> chunk;
  for (int64_t first = 0; first < source.rows; first += chunk_rows) {
    chunk.clear();
    for (int64_t n = first; n < std::min(source.rows, first + chunk_rows); ++n) {
      ReadSource(source, n, 0, source.cols, row.data());
      for (const float value : row) chunk.push_back(ToBF16(value));
    }
    runtime.Upload(to + first * source.cols * 2, chunk.data(),
                   static_cast<int64_t>(chunk.size() * sizeof(BF16)));
  }
}

DeviceMatrix WeightLoader::Load(std::span<const SourceMatrix> parts) const {
  // A matrix has one type, so parts of mixed types all become BF16.
  const bool fp8 = std::ranges::all_of(
      parts, [](const SourceMatrix& part) { return part.dtype == DType::kF8E4M3; });
  const int64_t cols = parts[0].cols;
  const int64_t row_bytes = cols * (fp8 ? 1 : 2);
  KERNEL_CHECK(row_bytes % kRowBytesUnit == 0, "rows of %ld bytes", row_bytes);
  // A part begins at a block of scales of its own, so that the scales of both parts are one matrix.
  std::vector<int64_t> first_rows;
  int64_t rows = 0;
  for (const SourceMatrix& part : parts) {
    if (fp8) rows = RoundUp(rows, kScaleBlock);
    first_rows.push_back(rows);
    rows += part.rows;
  }
  DeviceMatrix matrix = {.type = fp8 ? GemmType::kE4M3 : GemmType::kBF16,
                         .n = static_cast<int>(rows),
                         .k = static_cast<int>(cols)};
  const int64_t scale_cols = fp8 ? parts[0].scale_cols() : 0;
  const int64_t scale_bytes = RoundUp(rows, kScaleBlock) / kScaleBlock * scale_cols * 4;
  // Rows between parts stay zero, as the heap made them: their products are never read.
  matrix.memory = heap_.Allocate(rows * row_bytes, MemoryUse::kOperations);
  std::byte* data = matrix.memory->data();
  matrix.data = data;
  std::byte* scales = nullptr;
  if (fp8) {
    matrix.scale_memory = heap_.Allocate(scale_bytes, MemoryUse::kOperations);
    scales = matrix.scale_memory->data();
    matrix.scales = reinterpret_cast<const float*>(scales);
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    std::byte* to = data + first_rows[i] * row_bytes;
    if (!fp8) {
      LoadBF16(parts[i], to);
      continue;
    }
    heap_.runtime().Upload(to, parts[i].data, parts[i].data_bytes());
    heap_.runtime().Upload(scales + first_rows[i] / kScaleBlock * scale_cols * 4, parts[i].scales,
                           parts[i].scale_bytes());
  }
  return matrix;
}

template <typename T>
DeviceArray<T> WeightLoader::Load(std::span<const T> values) const {
  DeviceArray<T> array;
  // A model without q_a has no norm for it, and a gate may have no bias.
  if (values.empty()) return array;
  array.memory = heap_.Allocate(static_cast<int64_t>(values.size_bytes()), MemoryUse::kOperations);
  array.data = reinterpret_cast<const T*>(array.memory->data());
  heap_.runtime().Upload(array.memory->data(), values.data(), array.memory->bytes());
  return array;
}

std::unique_ptr<CudaMatrix> WeightLoader::LoadMatrix(const SourceMatrix& source) const {
  auto matrix = std::make_unique<CudaMatrix>();
  matrix->rows = source.rows;
  matrix->cols = source.cols;
  matrix->weight = Load({&source, 1});
  matrix->packed_bytes = BytesOf(matrix->weight);
  return matrix;
}

std::unique_ptr<CudaMlp> WeightLoader::LoadMlp(const SourceMatrix& gate, const SourceMatrix& up,
                                               const SourceMatrix& down) const {
  auto mlp = std::make_unique<CudaMlp>();
  mlp->hidden = gate.cols;
  mlp->intermediate = gate.rows;
  const SourceMatrix gate_up[] = {gate, up};
  mlp->gate_up = Load(gate_up);
  mlp->up_offset = static_cast<int>(mlp->gate_up.n - up.rows);
  mlp->down = Load({&down, 1});
  // Maps for either column tile are made once, at loading: which one a step wants follows from its
  // rows.
  mlp->gate_up_maps = std::make_unique<GroupMaps>(mlp->gate_up);
  mlp->down_maps = std::make_unique<GroupMaps>(mlp->down);
  mlp->packed_bytes = BytesOf(mlp->gate_up) + BytesOf(mlp->down);
  return mlp;
}

std::unique_ptr<CudaAttention> WeightLoader::LoadAttention(const AttentionSource& source) const {
  const AttentionShape& shape = source.shape;
  auto attention = std::make_unique<CudaAttention>();
  attention->shape = shape;
  attention->input_norm = Load(source.input_norm);
  attention->q_a_norm = Load(source.q_a_norm);
  attention->kv_a_norm = Load(source.kv_a_norm);
  // The normed rows meet both weights, so both are one matrix: one product in place of two.
  const bool low_rank = shape.q_rank > 0;
  const SourceMatrix first[] = {low_rank ? source.q_a : source.q, source.kv_a};
  attention->first = Load(first);
  attention->kv_row = static_cast<int>(attention->first.n - source.kv_a.rows);
  if (low_rank) attention->q_b = Load({&source.q, 1});
  attention->o = Load({&source.o, 1});
  const int64_t head_keys = int64_t{shape.kv_rank} * shape.nope_dim;
  const int64_t head_values = int64_t{shape.v_dim} * shape.kv_rank;
  // Absorbed attention multiplies the query by one half of kv_b and the output by the other, head
  // by head, so the halves are taken apart.
  std::vector<BF16> keys(shape.heads * head_keys), values(shape.heads * head_values);
  for (int h = 0; h < shape.heads; ++h) {
    SplitKvB(source, h, keys.data() + h * head_keys, values.data() + h * head_values);
  }
  attention->w_uk = Load(std::span<const BF16>(keys));
  attention->w_uv = Load(std::span<const BF16>(values));
  attention->packed_bytes = BytesOf(attention->input_norm) + BytesOf(attention->q_a_norm) +
                            BytesOf(attention->kv_a_norm) + BytesOf(attention->first) +
                            BytesOf(attention->o) + BytesOf(attention->w_uk) +
                            BytesOf(attention->w_uv) + (low_rank ? BytesOf(attention->q_b) : 0);
  return attention;
}

std::unique_ptr<CudaGate> WeightLoader::LoadGate(const GateShape& shape, const SourceMatrix& weight,
                                                 std::span<const float> correction_bias) const {
  auto gate = std::make_unique<CudaGate>();
  gate->shape = shape;
  gate->bias = Load(correction_bias);
  gate->packed_bytes = BytesOf(gate->bias);
  std::vector<float> rest(weight.rows * weight.cols);
  for (int64_t n = 0; n < weight.rows; ++n) {
    ReadSource(weight, n, 0, weight.cols, rest.data() + n * weight.cols);
  }
  // Each part takes the 8 leading bits that are left: three make up FP32's 24.
  std::vector<BF16> part;
  while (static_cast<int>(gate->parts.size()) < kRouterPartsMax) {
    // A router of zeros still has one part.
    if (!TakePart(rest, part) && !gate->parts.empty()) break;
    const SourceMatrix rounded = {
        .dtype = DType::kBF16, .rows = weight.rows, .cols = weight.cols, .data = part.data()};
    gate->parts.push_back(Load({&rounded, 1}));
    gate->packed_bytes += BytesOf(gate->parts.back());
  }
  return gate;
}

}  // namespace epic::kernels::cuda
