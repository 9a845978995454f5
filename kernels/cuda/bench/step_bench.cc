#include "kernels/cuda/bench/step_bench.h"

#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/bench/measure.h"
#include "kernels/testing/random.h"
#include "kernels/testing/v3_shape.h"

namespace epic::kernels::cuda {
namespace {

constexpr int kLayers = 8;  // all of the same weights, which no cache holds
constexpr int kHidden = 7168;
constexpr int kExpertWidth = 2048;
constexpr int kExpertsHere = 32;
constexpr int kContext = 4096;

// Sources of any shape, from the same bytes.
class Sources {
 public:
  explicit Sources(int64_t values) : codes_(values), scales_(values / 1024, 0.001f) {
    Random random(1);
    for (uint8_t& code : codes_) code = random.Next() & 0xb7;  // finite as E4M3 and as BF16
  }
  SourceMatrix Of(DType dtype, int64_t rows, int64_t cols) const {
    return {.dtype = dtype,
            .rows = rows,
            .cols = cols,
            .data = codes_.data(),
            .scales = dtype == DType::kF8E4M3 ? scales_.data() : nullptr};
  }

 private:
  std::vector<uint8_t> codes_;
  std::vector<float> scales_;
};

class V3Steps {
 public:
  V3Steps(Backend& backend, const Sources& sources, int batch)
      : backend_(backend), batch_(batch), rows_(backend.StepRows(batch)) {
    const AttentionShape shape = V3Attention();
    const auto fp8 = [&](int64_t rows, int64_t cols) {
      return sources.Of(DType::kF8E4M3, rows, cols);
    };
    const std::vector<float> ones(kHidden, 1.0f), bias(256, 0.0f);
    attention_ = backend.LoadAttention(
        {.shape = shape,
         .input_norm = ones,
         .q_a = fp8(shape.q_rank, kHidden),
         .q_a_norm = std::span(ones).first(shape.q_rank),
         .q = fp8(int64_t{shape.heads} * (shape.nope_dim + shape.rope_dim), shape.q_rank),
         .kv_a = fp8(shape.kv_rank + shape.rope_dim, kHidden),
         .kv_a_norm = std::span(ones).first(shape.kv_rank),
         .kv_b = fp8(int64_t{shape.heads} * (shape.nope_dim + shape.v_dim), shape.kv_rank),
         .o = fp8(kHidden, int64_t{shape.heads} * shape.v_dim)});
    gate_ = backend.LoadGate(V3Gate(), sources.Of(DType::kBF16, 256, kHidden), bias);
    const auto mlp = [&] {
      return backend.LoadMlp(fp8(kExpertWidth, kHidden), fp8(kExpertWidth, kHidden),
                             fp8(kHidden, kExpertWidth));
    };
    shared_ = mlp();
    for (int e = 0; e < kExpertsHere; ++e) {
      loaded_.push_back(mlp());
      experts_.push_back(loaded_.back().get());
    }
    // As many pairs as the batch brings a card of eight, spread evenly.
    for (int i = 0; i < batch; ++i) pairs_.push_back({i, i * 7 % kExpertsHere});

    const int pages = kContext / kPageTokens;
    layout_ = {shape.kv_rank, shape.rope_dim};
    page_count_ = pages * batch;
    slab_ = backend.Allocate(page_count_ * layout_.page_bytes(), MemoryUse::kOperations);
    slabs_.assign(kLayers, slab_->data());
    for (int i = 0; i < batch; ++i) {
      plan_.sequences.push_back({i, 1, kContext - 1, static_cast<int32_t>(plan_.pages.size())});
      plan_.row_sequence.push_back(i);
      plan_.token_ids.push_back(0);
      plan_.positions.push_back(kContext - 1);
      for (int page = 0; page < pages; ++page) plan_.pages.push_back(page * batch + i);
    }
    for (int i = 0; i < shape.rope_dim / 2; ++i) {
      rope_.inverse_frequency.push_back(std::exp(-0.3 * i));
    }
    norm_ = Tensor(DType::kF32, 1, kHidden, MemoryUse::kOperations);
    residual_ = Tensor(DType::kF32, rows_, kHidden, MemoryUse::kOperations);
    query_ = Tensor(DType::kBF16, rows_, int64_t{128} * 576, MemoryUse::kOperations);
    output_ = Tensor(DType::kBF16, rows_, int64_t{128} * 512, MemoryUse::kOperations);
    chosen_ = {Tensor(DType::kBF16, rows_, kHidden, MemoryUse::kTraffic),
               Tensor(DType::kI32, rows_, 8, MemoryUse::kHost),
               Tensor(DType::kF32, rows_, 8, MemoryUse::kOperations),
               Tensor(DType::kU8, rows_, 1, MemoryUse::kHost)};
    mlp_out_ = Tensor(DType::kBF16, rows_, kHidden, MemoryUse::kOperations);
    answers_ = Tensor(DType::kBF16, int64_t{rows_} * 8, kHidden, MemoryUse::kTraffic);
    backend.Wait();
  }

  void Run() {
    const KvView kv = {layout_, slabs_, page_count_};
    backend_.BeginStep(plan_, rope_);
    for (int layer = 0; layer < kLayers; ++layer) {
      backend_.AttentionIn(*attention_, plan_, kv, layer, residual_, query_);
      backend_.Attend(*attention_, plan_, kv, layer, query_, output_);
      backend_.AttentionOut(*attention_, output_, residual_);
      backend_.Norm(norm_, 1e-6f, residual_, chosen_.rows);
      backend_.ChooseExperts(*gate_, chosen_);
      backend_.Wait();
      backend_.ApplyMlp(*shared_, chosen_.rows, mlp_out_);
      backend_.Experts(experts_, chosen_.rows.Slice(0, batch_), pairs_,
                       answers_.Slice(0, std::ssize(pairs_)));
      backend_.Combine(mlp_out_, answers_, chosen_.weights, residual_);
    }
    backend_.Wait();
  }

 private:
  kernels::Tensor Tensor(DType dtype, int64_t rows, int64_t cols, MemoryUse use) {
    memory_.push_back(backend_.Allocate(rows * cols * DTypeBytes(dtype), use));
    return {dtype, rows, cols, memory_.back()->data()};
  }

  Backend& backend_;
  const int batch_;
  const int rows_;
  std::unique_ptr<Attention> attention_;
  std::unique_ptr<Gate> gate_;
  std::unique_ptr<Mlp> shared_;
  std::vector<std::unique_ptr<Mlp>> loaded_;
  std::vector<const Mlp*> experts_;
  std::vector<ExpertRow> pairs_;
  KvLayout layout_;
  int page_count_ = 0;
  std::unique_ptr<Memory> slab_;
  std::vector<std::byte*> slabs_;
  StepPlan plan_;
  Rope rope_;
  std::vector<std::unique_ptr<Memory>> memory_;
  kernels::Tensor norm_, residual_, query_, output_, mlp_out_, answers_;
  GateResult chosen_;
};

// Of a layer. Events on another stream than the backend's time its steps, since each ends in Wait.
Timing TimeSteps(V3Steps& steps) {
  for (int i = 0; i < 3; ++i) steps.Run();  // the first makes graphs
  Timing timing = Measure([&](int) { steps.Run(); });
  timing.median_us /= kLayers;
  return timing;
}

}  // namespace

void BenchSteps() {
  const Sources sources(int64_t{7168} * 16384);
  for (const int batch : {1, 16, 64, 128}) {
    double eager_us = 0;
    for (const bool graphs : {false, true}) {
      CudaBackendResult made = MakeCudaBackend({.graphs = graphs});
      if (made.backend == nullptr) {
        std::printf("step: %s\n", made.error.c_str());
        return;
      }
      V3Steps steps(*made.backend, sources, batch);
      const Timing timing = TimeSteps(steps);
      char figures[64] = "eager";
      if (graphs) {
        std::snprintf(figures, sizeof(figures), "graphs, %.2f of eager",
                      timing.median_us / eager_us);
      }
      eager_us = timing.median_us;
      Report("layer of a V3 step", "batch " + std::to_string(batch) + ", context 4096", timing,
             figures);
    }
  }
}

}  // namespace epic::kernels::cuda
