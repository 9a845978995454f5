#include "kernels/testing/toy_model.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/number.h"

namespace epic::kernels {
namespace {

std::vector<float> RandomVector(Random& random, int64_t size, float centre, float range) {
  std::vector<float> values(size);
  for (float& value : values) value = centre + random.Real(range);
  return values;
}

template <typename T>
void Append(std::vector<uint8_t>& bytes, T value) {
  const auto* from = reinterpret_cast<const uint8_t*>(&value);
  bytes.insert(bytes.end(), from, from + sizeof(value));
}

uint16_t SmallHalf(Random& random) {  // |x| in [2⁻⁴, 2⁻³)
  return static_cast<uint16_t>((random.Next() & 0x8000u) | 0x2c00u | (random.Next() & 0x3ffu));
}

uint8_t FiniteE4M3(Random& random) {
  const auto code = static_cast<uint8_t>(random.Next());
  return IsE4M3NaN(code) ? 0 : code;
}

uint32_t Pattern(float value) {
  return std::isnan(value) ? 0x7fc00000u : std::bit_cast<uint32_t>(value);
}

}  // namespace

ToyShape SmallToyShape() {
  ToyShape shape;
  shape.attention = {.hidden = 100,
                     .heads = 3,
                     .q_rank = 40,
                     .kv_rank = 24,
                     .nope_dim = 18,
                     .rope_dim = 6,
                     .v_dim = 14,
                     .norm_eps = 1e-5f,
                     .inner_norm_eps = 1e-6f,
                     .softmax_scale = 0.3f};
  shape.gate = {.experts = 7, .top_k = 3, .score = GateScore::kSigmoid, .scaling = 1.5f};
  return shape;
}

ToyMatrix::ToyMatrix(Random& random, DType dtype, int64_t rows, int64_t cols)
    : dtype_(dtype), rows_(rows), cols_(cols) {
  const float range = std::sqrt(3.0f / static_cast<float>(cols));
  bytes_.reserve(rows * cols * DTypeBytes(dtype));
  for (int64_t i = 0; i < rows * cols; ++i) {
    switch (dtype) {
      case DType::kF32:
        Append(bytes_, random.Real(range));
        break;
      case DType::kF16:
        Append(bytes_, SmallHalf(random));
        break;
      case DType::kBF16:
        Append(bytes_, ToBF16(random.Real(range)));
        break;
      default:
        bytes_.push_back(FiniteE4M3(random));
    }
  }
  if (dtype != DType::kF8E4M3) return;
  const int64_t blocks = ((rows + 127) / 128) * ((cols + 127) / 128);
  for (int64_t i = 0; i < blocks; ++i) {
    scales_.push_back(range / 60.0f * (1.5f + random.Real(0.5f)));
  }
}

SourceMatrix ToyMatrix::source() const {
  return {.dtype = dtype_,
          .rows = rows_,
          .cols = cols_,
          .data = bytes_.data(),
          .scales = scales_.empty() ? nullptr : scales_.data()};
}

ToyModel::MlpSource ToyModel::MakeMlp(Random& random) const {
  const int hidden = shape_.attention.hidden;
  return {ToyMatrix(random, shape_.dtype, shape_.intermediate, hidden),
          ToyMatrix(random, shape_.dtype, shape_.intermediate, hidden),
          ToyMatrix(random, shape_.dtype, hidden, shape_.intermediate)};
}

ToyModel::ToyModel(const ToyShape& shape, uint64_t seed) : shape_(shape) {
  Random random(seed);
  const AttentionShape& a = shape.attention;
  const DType plain = shape.dtype == DType::kF8E4M3 ? DType::kBF16 : shape.dtype;
  embedding_ = ToyMatrix(random, DType::kBF16, shape.vocab, a.hidden);
  head_ = ToyMatrix(random, plain, shape.vocab, a.hidden);
  router_ = ToyMatrix(random, shape.router_dtype, shape.gate.experts, a.hidden);
  final_norm_ = RandomVector(random, a.hidden, 1.0f, 0.2f);
  if (shape.gate.group_score == GroupScore::kTopTwoSum) {
    correction_bias_ = RandomVector(random, shape.gate.experts, 0.0f, 0.1f);
  }
  for (int i = 0; i < 2; ++i) {
    Layer layer;
    layer.input_norm = RandomVector(random, a.hidden, 1.0f, 0.2f);
    layer.mlp_norm = RandomVector(random, a.hidden, 1.0f, 0.2f);
    layer.kv_a_norm = RandomVector(random, a.kv_rank, 1.0f, 0.2f);
    if (a.q_rank > 0) {
      layer.q_a_norm = RandomVector(random, a.q_rank, 1.0f, 0.2f);
      layer.q_a = ToyMatrix(random, shape.dtype, a.q_rank, a.hidden);
    }
    layer.q = ToyMatrix(random, shape.dtype, int64_t{a.heads} * (a.nope_dim + a.rope_dim),
                        a.q_rank > 0 ? a.q_rank : a.hidden);
    layer.kv_a = ToyMatrix(random, shape.dtype, a.kv_rank + a.rope_dim, a.hidden);
    layer.kv_b =
        ToyMatrix(random, shape.dtype, int64_t{a.heads} * (a.nope_dim + a.v_dim), a.kv_rank);
    layer.o = ToyMatrix(random, shape.dtype, a.hidden, int64_t{a.heads} * a.v_dim);
    layers_.push_back(std::move(layer));
  }
  dense_ = MakeMlp(random);
  shared_ = MakeMlp(random);
  for (int e = 0; e < shape.gate.experts; ++e) experts_.push_back(MakeMlp(random));
}

void ToyModel::BreakToken(int token) {
  const int64_t row_bytes = 2 * shape_.attention.hidden;
  std::memset(embedding_.bytes().data() + token * row_bytes, 0xff, row_bytes);
}

ToyRun::ToyRun(const ToyModel& model, Backend& backend, int sequences, int positions_max)
    : model_(model),
      backend_(backend),
      sequences_(sequences),
      pages_per_sequence_((positions_max + kPageTokens - 1) / kPageTokens),
      lengths_(sequences, 0),
      prompt_lengths_(sequences, 0) {
  const AttentionShape& shape = model.shape_.attention;
  layout_ = {shape.kv_rank, shape.rope_dim, backend.kv_type()};
  for (int i = 0; i < shape.rope_dim / 2; ++i) {
    rope_.inverse_frequency.push_back(std::pow(10000.0, -2.0 * i / shape.rope_dim));
  }
  const SourceMatrix embedding = model.embedding_.source();
  embedding_ = Upload(embedding.dtype, embedding.rows, embedding.cols, embedding.data);
  final_norm_ = Upload(DType::kF32, 1, shape.hidden, model.final_norm_.data());
  head_ = backend.LoadMatrix(model.head_.source());
  gate_ = backend.LoadGate(model.shape_.gate, model.router_.source(), model.correction_bias_);
  const auto load = [&](const ToyModel::MlpSource& mlp) {
    return backend.LoadMlp(mlp.gate.source(), mlp.up.source(), mlp.down.source());
  };
  dense_ = load(model.dense_);
  shared_ = load(model.shared_);
  for (const auto& expert : model.experts_) experts_.push_back(load(expert));
  for (const auto& layer : model.layers_) {
    mlp_norms_.push_back(Upload(DType::kF32, 1, shape.hidden, layer.mlp_norm.data()));
    attention_.push_back(backend.LoadAttention({.shape = shape,
                                                .input_norm = layer.input_norm,
                                                .q_a = layer.q_a.source(),
                                                .q_a_norm = layer.q_a_norm,
                                                .q = layer.q.source(),
                                                .kv_a = layer.kv_a.source(),
                                                .kv_a_norm = layer.kv_a_norm,
                                                .kv_b = layer.kv_b.source(),
                                                .o = layer.o.source()}));
    const int64_t bytes = sequences * pages_per_sequence_ * layout_.page_bytes();
    slabs_.push_back(backend.Allocate(bytes, MemoryUse::kTraffic));
    slab_pointers_.push_back(slabs_.back()->data());
    // What was never written must never be multiplied.
    std::memset(slabs_.back()->data(), 0xff, bytes);
  }
}

// Sequences' pages are interleaved and descend, so no two neighbours stand together.
int32_t ToyRun::Page(int sequence, int index) const {
  return (pages_per_sequence_ - 1 - index) * sequences_ + sequence;
}

std::byte* ToyRun::RecordAddress(int layer, int sequence, int position) const {
  return slab_pointers_[layer] + Page(sequence, position / kPageTokens) * layout_.page_bytes() +
         position % kPageTokens * layout_.record_bytes();
}

std::vector<std::byte> ToyRun::Record(int layer, int sequence, int position) const {
  const std::byte* at = RecordAddress(layer, sequence, position);
  return {at, at + layout_.record_bytes()};
}

StepPlan ToyRun::Plan(const std::vector<ToyChunk>& chunks) {
  StepPlan plan;
  for (const ToyChunk& chunk : chunks) {
    int& length = lengths_[chunk.sequence];
    plan.sequences.push_back({.first_row = plan.rows(),
                              .row_count = chunk.rows,
                              .first_position = length,
                              .first_page = static_cast<int32_t>(plan.pages.size()),
                              .prompt_length = prompt_lengths_[chunk.sequence]});
    for (int i = 0; i < chunk.rows; ++i, ++length) {
      plan.logit_rows.push_back(plan.rows());
      plan.positions.push_back(length);
      plan.row_sequence.push_back(static_cast<int32_t>(plan.sequences.size()) - 1);
      plan.token_ids.push_back(model_.Token(chunk.sequence, length));
    }
    for (int i = 0; i * kPageTokens < length; ++i) plan.pages.push_back(Page(chunk.sequence, i));
  }
  return plan;
}

Tensor ToyRun::NewTensor(DType dtype, int64_t rows, int64_t cols, MemoryUse use) {
  if (tensors_.size() == tensor_count_) tensors_.emplace_back();
  std::unique_ptr<Memory>& memory = tensors_[tensor_count_++];
  const int64_t bytes = rows * cols * DTypeBytes(dtype);
  if (memory == nullptr || memory->bytes() != bytes) memory = backend_.Allocate(bytes, use);
  return {.dtype = dtype, .rows = rows, .cols = cols, .data = memory->data()};
}

Tensor ToyRun::Upload(DType dtype, int64_t rows, int64_t cols, const void* data) {
  uploads_.push_back(backend_.Allocate(rows * cols * DTypeBytes(dtype), MemoryUse::kOperations));
  const Tensor tensor = {dtype, rows, cols, uploads_.back()->data()};
  backend_.Write(tensor.As<std::byte>(), data, tensor.bytes());
  return tensor;
}

void ToyRun::RunExperts(int rows, const GateResult& chosen, Tensor shared, Tensor residual) {
  std::vector<const Mlp*> experts;
  for (const auto& expert : experts_) experts.push_back(expert.get());
  const int64_t top_k = chosen.experts.cols;
  std::vector<ExpertRow> pairs;
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t j = 0; j < top_k; ++j) {
      pairs.push_back({static_cast<int32_t>(t), chosen.experts.Row<int32_t>(t)[j]});
    }
  }
  const Tensor out =
      NewTensor(DType::kBF16, residual.rows * top_k, residual.cols, MemoryUse::kTraffic);
  backend_.Experts(experts, chosen.rows.Slice(0, rows), pairs, out.Slice(0, rows * top_k));
  backend_.Combine(shared, out, chosen.weights, residual);
}

void ToyRun::Step(const std::vector<ToyChunk>& chunks) {
  tensor_count_ = 0;
  const StepPlan plan = Plan(chunks);
  const AttentionShape& shape = model_.shape_.attention;
  const int64_t rows = backend_.StepRows(plan.rows());
  const KvView kv{layout_, slab_pointers_, sequences_ * pages_per_sequence_};
  const auto local = [&](DType dtype, int64_t cols) {
    return NewTensor(dtype, rows, cols, MemoryUse::kOperations);
  };
  const auto seen = [&](DType dtype, int64_t cols) {
    return NewTensor(dtype, rows, cols, MemoryUse::kHost);
  };
  const Tensor residual = local(DType::kF32, shape.hidden);
  const Tensor query = local(DType::kBF16, int64_t{shape.heads} * (shape.kv_rank + shape.rope_dim));
  const Tensor output = local(DType::kBF16, int64_t{shape.heads} * shape.kv_rank);
  const int64_t top_k = gate_->shape.top_k;
  const GateResult chosen{local(DType::kBF16, shape.hidden), seen(DType::kI32, top_k),
                          local(DType::kF32, top_k), seen(DType::kU8, 1)};
  const Tensor out = local(DType::kBF16, shape.hidden);
  backend_.BeginStep(plan, rope_);
  backend_.Embed(plan,
                 {.dtype = embedding_.dtype,
                  .rows = embedding_.rows,
                  .cols = embedding_.cols,
                  .data = embedding_.data},
                 residual);
  for (int layer = 0; layer < 2; ++layer) {
    const Attention& attention = *attention_[layer];
    backend_.AttentionIn(attention, plan, kv, layer, residual, query);
    backend_.Attend(attention, plan, kv, layer, query, output);
    backend_.AttentionOut(attention, output, residual);
    backend_.Norm(mlp_norms_[layer], shape.norm_eps, residual, chosen.rows);
    if (layer == 0) {
      backend_.ApplyMlp(*dense_, chosen.rows, out);
      backend_.Combine(out, {}, {}, residual);
    } else {
      backend_.ChooseExperts(*gate_, chosen);
      backend_.ApplyMlp(*shared_, chosen.rows, out);
      backend_.Wait();
      RunExperts(plan.rows(), chosen, out, residual);
    }
  }
  const Tensor logits = seen(DType::kF32, model_.shape_.vocab).Slice(0, plan.rows());
  backend_.Head(final_norm_, shape.norm_eps, *head_, plan, residual, logits);
  backend_.Wait();
  for (int64_t t = 0; t < plan.rows(); ++t) {
    const std::pair key{chunks[plan.row_sequence[t]].sequence, plan.positions[t]};
    const float* row = logits.Row<float>(t);
    values_[key].assign(row, row + logits.cols);
    std::vector<uint32_t>& bits = logits_[key];
    bits.clear();
    for (int64_t i = 0; i < logits.cols; ++i) bits.push_back(Pattern(row[i]));
  }
}

Logits RunAll(const ToyModel& model, Backend& backend, const std::vector<int>& prompts,
              const Schedule& schedule) {
  ToyRun run(model, backend, 3, 640);
  for (size_t i = 0; i < prompts.size(); ++i) run.SetPrompt(static_cast<int>(i), prompts[i]);
  for (const auto& chunks : schedule) run.Step(chunks);
  return run.logits();
}

Logits RunAll(const ToyModel& model, Backend& backend, const Schedule& schedule) {
  return RunAll(model, backend, {}, schedule);
}

}  // namespace epic::kernels
