// CudaBackend over any DeviceRuntime, for backend.h and for tests: the CUDA runtime on a card, or
// the emulated device on the host (device/runtime.h). docs/cuda.md describes it.
//
// Operations only launch; nothing waits for the device but Wait, and Experts whose answers go to
// host memory. Launches of small steps are held back until something must follow them: each call
// that gives the runtime anything else, or ends an operation's piece, first sends them off (Flush).
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/limits.h"
#include "kernels/cuda/operation_graphs.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/step_arrays.h"
#include "kernels/cuda/weights.h"
#include "kernels/step_checks.h"
#include "kernels/threads/thread_pool.h"

namespace epic::kernels::cuda {

// As MakeCudaBackend, with `product` in the tiles' test.
CudaBackendResult MakeBackendOn(std::unique_ptr<DeviceRuntime> runtime, const CudaOptions& options,
                                const TileProduct& product);

class CudaBackend : public Backend {
 public:
  // `tiles` must have admitted at least one tile of each type. `heap` must be of `runtime`.
  CudaBackend(std::unique_ptr<DeviceRuntime> runtime, std::unique_ptr<DeviceHeap> heap,
              TileChoice tiles, const CudaOptions& options);
  ~CudaBackend() override;

  std::string profile() const override;
  KvType kv_type() const override { return kv_type_; }
  std::string description() const override;
  int compute_threads() const override { return host_threads_.threads(); }

  void Wait() override {
    graphs_.Flush();
    runtime_->Wait();
  }
  // ForEach computes on the host, and does not wait for the device.
  void ForEach(int count, const std::function<void(int)>& task) override {
    host_threads_.ForEach(count, task);
  }
  void Write(std::byte* to, const void* from, int64_t bytes) override {
    graphs_.Flush();
    runtime_->Upload(to, from, bytes);
  }
  void Zero(std::byte* at, int64_t bytes) override {
    graphs_.Flush();
    runtime_->Zero(at, bytes);
  }

  // Weights are loaded and memory is allocated by any thread; operations come from one thread.
  std::unique_ptr<Memory> Allocate(int64_t bytes, MemoryUse use) override {
    return heap_->Allocate(bytes, use);
  }
  std::unique_ptr<Matrix> LoadMatrix(const SourceMatrix& source) override {
    CheckSource(source);
    return loader_.LoadMatrix(source);
  }
  std::unique_ptr<Mlp> LoadMlp(const SourceMatrix& gate, const SourceMatrix& up,
                               const SourceMatrix& down) override {
    CheckMlpSources(gate, up, down);
    return loader_.LoadMlp(gate, up, down);
  }
  std::unique_ptr<Attention> LoadAttention(const AttentionSource& source) override {
    CheckAttentionSource(source);
    return loader_.LoadAttention(source);
  }
  std::unique_ptr<Gate> LoadGate(const GateShape& shape, const SourceMatrix& weight,
                                 std::span<const float> correction_bias) override {
    CheckGateSource(shape, weight, correction_bias);
    return loader_.LoadGate(shape, weight, correction_bias);
  }

  // The caller fills a step up to this many rows, so that steps of a bucket launch the same
  // kernels.
  int StepRows(int rows) const override { return BucketOf(rows); }
  void BeginStep(const StepPlan& plan, const Rope& rope) override {
    checks_.Begin(plan, rope);
    // The last step's launches still read the arrays that Begin overwrites.
    graphs_.Flush();
    arrays_.Begin(plan, StepRows(plan.rows()), rope);
  }
  void Embed(const StepPlan& plan, const SourceMatrix& table, Tensor residual) override;
  void AttentionIn(const Attention& attention, const StepPlan& plan, const KvView& kv, int layer,
                   Tensor residual, Tensor query) override;
  void Attend(const Attention& attention, const StepPlan& plan, const KvView& kv, int layer,
              Tensor query, Tensor output) override;
  void AttentionOut(const Attention& attention, Tensor output, Tensor residual) override;
  void Norm(Tensor weight, float eps, Tensor residual, Tensor rows) override;
  void ChooseExperts(const Gate& gate, const GateResult& result) override;
  void Experts(std::span<const Mlp* const> experts, Tensor rows, std::span<const ExpertRow> pairs,
               Tensor out) override;
  void ApplyMlp(const Mlp& mlp, Tensor rows, Tensor out) override;
  void Combine(Tensor shared, Tensor expert_rows, Tensor weights, Tensor residual) override;
  void Head(Tensor norm, float eps, const Matrix& head, const StepPlan& plan, Tensor residual,
            Tensor logits) override;

  // For tests.
  const OperationGraphs& graphs() const { return graphs_; }

 private:
  // Begins an operation on `rows` rows. Rows beyond the largest bucket are not filled up to a
  // number that comes again, so their launches are not held back.
  void BeginOperation(int64_t rows) { graphs_.Begin(rows <= kBucketRowsMax); }

  // The order matters: memory goes back to the heap, and the heap's to the runtime.
  const std::unique_ptr<DeviceRuntime> runtime_;
  const std::unique_ptr<DeviceHeap> heap_;
  const KvType kv_type_;
  StepChecks checks_;
  OperationGraphs graphs_;
  const Products products_;
  const WeightLoader loader_;
  StepArrays arrays_;
  AttentionRunner attention_;
  MlpRunner mlps_;
  RowScratch head_rows_;
  Scratch gate_logits_, logits_;
  ThreadPool host_threads_;  // for ForEach: sampling while the device is idle
};

}  // namespace epic::kernels::cuda
