#include "kernels/cpu/cpu_weights.h"

#include "kernels/kv_b.h"
#include "kernels/number.h"

namespace epic::kernels {
namespace {

// The parts of kv_b for every head, made by all threads: W_UKᵀ [kv_rank, nope], W_UV [v, kv_rank],
// and W_UK if wanted.
struct AllOfKvB {
  std::vector<BF16> keys_transposed;
  std::vector<BF16> keys;
  std::vector<BF16> values;

  AllOfKvB(const AttentionSource& source, bool keys_too, ThreadPool& pool) {
    const AttentionShape& shape = source.shape;
    const int64_t head_keys = int64_t{shape.kv_rank} * shape.nope_dim;
    const int64_t head_values = int64_t{shape.v_dim} * shape.kv_rank;
    keys_transposed.resize(shape.heads * head_keys);
    if (keys_too) keys.resize(keys_transposed.size());
    values.resize(shape.heads * head_values);
    // Heads are dealt out in turn, and each is dequantised by one thread.
    pool.Run([&](int thread) {
      for (int h = thread; h < shape.heads; h += pool.threads()) {
        BF16* transposed = keys_transposed.data() + h * head_keys;
        SplitKvB(source, h, transposed, values.data() + h * head_values);
        for (int64_t i = 0; keys_too && i < head_keys; ++i) {
          keys[h * head_keys + i % shape.nope_dim * shape.kv_rank + i / shape.nope_dim] =
              transposed[i];
        }
      }
    });
  }
};

int64_t PoolShare(int64_t count, int thread, int threads) { return count * thread / threads; }

}  // namespace

std::unique_ptr<HugeMemory> WeightLoader::Pack(std::span<const Request> requests) const {
  int64_t total = 0;
  for (const Request& request : requests) {
    const SourceMatrix& source = request.source;
    const DType dtype = PackedDType(source.dtype, source.cols,
                                    request.quantized ? quantization_ : Quantization::kNone);
    // Sizes come first, so that all matrices lie in one piece of memory.
    *request.to = {.n = source.rows, .k = source.cols, .dtype = dtype};
    total += PackedBytes(family_, source.rows, source.cols, dtype);
  }
  auto memory = std::make_unique<HugeMemory>(total);
  std::byte* at = memory->data();
  for (const Request& request : requests) {
    request.to->data = at;
    at += PackedBytes(family_, request.to->n, request.to->k, request.to->dtype);
  }
  // Each thread packs its share of every matrix: the thread that touches a page first places it.
  pool_.Run([&](int thread) {
    for (const Request& request : requests) {
      const int64_t panels = PanelCount(family_, request.to->n);
      const int64_t begin = PoolShare(panels, thread, pool_.threads());
      const int64_t end = PoolShare(panels, thread + 1, pool_.threads());
      family_.Pack(request.source, request.to->dtype, begin, end,
                   const_cast<std::byte*>(request.to->data));
    }
  });
  return memory;
}

std::unique_ptr<CpuMatrix> WeightLoader::Load(const SourceMatrix& source) const {
  auto matrix = std::make_unique<CpuMatrix>();
  matrix->rows = source.rows;
  matrix->cols = source.cols;
  const Request request{source, &matrix->weight};
  matrix->memory = Pack({&request, 1});
  matrix->packed_bytes = matrix->memory->bytes();
  return matrix;
}

std::unique_ptr<CpuMlp> WeightLoader::LoadMlp(const SourceMatrix& gate, const SourceMatrix& up,
                                              const SourceMatrix& down) const {
  auto mlp = std::make_unique<CpuMlp>();
  mlp->hidden = gate.cols;
  mlp->intermediate = gate.rows;
  const Request requests[] = {{gate, &mlp->gate}, {up, &mlp->up}, {down, &mlp->down}};
  mlp->memory = Pack(requests);
  mlp->packed_bytes = mlp->memory->bytes();
  return mlp;
}

std::unique_ptr<CpuAttention> WeightLoader::LoadAttention(const AttentionSource& source) const {
  const AttentionShape& shape = source.shape;
  auto attention = std::make_unique<CpuAttention>();
  attention->shape = shape;
  attention->input_norm.assign(source.input_norm.begin(), source.input_norm.end());
  attention->q_a_norm.assign(source.q_a_norm.begin(), source.q_a_norm.end());
  attention->kv_a_norm.assign(source.kv_a_norm.begin(), source.kv_a_norm.end());
  attention->w_uk.resize(shape.heads);
  attention->w_uv.resize(shape.heads);
  if (prompt_attention_ == PromptAttention::kExpanded) attention->w_k.resize(shape.heads);

  // These are the sources of requests below, so they must live until Pack has read them.
  const AllOfKvB split(source, !attention->w_k.empty(), pool_);
  std::vector<Request> requests = {
      {source.q, &attention->q}, {source.kv_a, &attention->kv_a}, {source.o, &attention->o}};
  if (shape.q_rank > 0) requests.push_back({source.q_a, &attention->q_a});
  // kv_b is never quantised: it stays BF16 under --quantization (docs/numerics.md).
  const auto add = [&](const BF16* data, int64_t rows, int64_t cols, PackedWeight* to) {
    requests.push_back(
        {{.dtype = DType::kBF16, .rows = rows, .cols = cols, .data = data}, to, false});
  };
  for (int64_t h = 0; h < shape.heads; ++h) {
    const int64_t key = h * shape.kv_rank * shape.nope_dim;
    add(split.keys_transposed.data() + key, shape.kv_rank, shape.nope_dim, &attention->w_uk[h]);
    add(split.values.data() + h * shape.v_dim * shape.kv_rank, shape.v_dim, shape.kv_rank,
        &attention->w_uv[h]);
    if (!attention->w_k.empty()) {
      add(split.keys.data() + key, shape.nope_dim, shape.kv_rank, &attention->w_k[h]);
    }
  }
  attention->memory = Pack(requests);
  attention->packed_bytes = attention->memory->bytes();
  return attention;
}

std::unique_ptr<CpuGate> WeightLoader::LoadGate(const GateShape& shape, const SourceMatrix& weight,
                                                std::span<const float> correction_bias) const {
  auto gate = std::make_unique<CpuGate>(shape, correction_bias);
  // A BF16 router is its own FP32 copy.
  const bool exact = weight.dtype == DType::kBF16;
  const DType dtype = exact ? DType::kBF16 : DType::kF32;
  // One thread packs it, since a router is small.
  const int64_t panels = PanelCount(fma_, weight.rows);
  gate->memory = std::make_unique<HugeMemory>(PackedBytes(fma_, weight.rows, weight.cols, dtype));
  gate->packed_bytes = gate->memory->bytes();
  gate->weight = {gate->memory->data(), weight.rows, weight.cols, dtype};
  fma_.Pack(weight, dtype, 0, panels, gate->memory->data());
  return gate;
}

}  // namespace epic::kernels
