// The CPU backend's operations: each collects its products and its work on rows and runs them in
// one parallel region (gemm_runner.h). cpu_backend.h makes one for the CPU that is there.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_attention.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/cpu_gemm.h"
#include "kernels/cpu/cpu_weights.h"
#include "kernels/cpu/fma_gemm.h"
#include "kernels/cpu/gemm_runner.h"
#include "kernels/cpu/int8_gemm.h"
#include "kernels/cpu/split_attention.h"
#include "kernels/cpu/tile_gemm.h"
#include "kernels/cpu/vector_ops.h"
#include "kernels/pairs_by_expert.h"
#include "kernels/rope_table.h"
#include "kernels/step_checks.h"

namespace epic::kernels {

class CpuBackend : public Backend {
 public:
  // `tiled` empty: family fma. The CPU must have what the families need: cpu_backend.cc chooses.
  CpuBackend(const CpuFeatures& features, const VectorOps& ops,
             const std::optional<TileGemmFamily>& tiled, const Int8GemmFamily& int8,
             const CpuOptions& options);

  std::string profile() const override;
  KvType kv_type() const override { return kv_type_; }

  // Where prompts attend expanded, each slice would expand the keys of all rows before it again.
  bool attends_slices() const override { return prompt_attention_ == PromptAttention::kAbsorbed; }
  std::string description() const override;

  // Tests and benchmarks read it (ParallelRegions).
  int64_t regions() const { return pool_.regions(); }

  int compute_threads() const override { return pool_.threads(); }
  void ForEach(int count, const std::function<void(int)>& task) override {
    pool_.ForEach(count, task);
  }
  // The pool calls the interlude between pieces of work (ThreadPool::Breathe).
  void SetInterlude(std::function<void()> interlude) override {
    pool_.SetInterlude(std::move(interlude));
  }

  // All memory is the host's, so its use makes no difference.
  std::unique_ptr<Memory> Allocate(int64_t bytes, MemoryUse use) override {
    return std::make_unique<HugeMemory>(bytes);
  }
  std::unique_ptr<Matrix> LoadMatrix(const SourceMatrix& source) override {
    CheckSource(source);
    return loader_.Load(source);
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

  void BeginStep(const StepPlan& plan, const Rope& rope) override;
  void Embed(const StepPlan& plan, const SourceMatrix& table, Tensor residual) override;
  void AttentionIn(const Attention& attention, const StepPlan& plan, const KvView& kv, int layer,
                   Tensor residual, Tensor query) override;
  void Attend(const Attention& attention, const StepPlan& plan, const KvView& kv, int layer,
              Tensor query, Tensor output) override;
  void AttentionOut(const Attention& attention, Tensor output, Tensor residual) override;
  void Norm(Tensor weight, float eps, Tensor residual, Tensor rows) override;
  void ChooseExperts(const Gate& base, const GateResult& result) override;
  void Experts(std::span<const Mlp* const> experts, Tensor rows, std::span<const ExpertRow> pairs,
               Tensor out) override;
  void ApplyMlp(const Mlp& base, Tensor rows, Tensor out) override;
  void Combine(Tensor shared, Tensor expert_rows, Tensor weights, Tensor residual) override;
  void Head(Tensor norm, float eps, const Matrix& head, const StepPlan& plan, Tensor residual,
            Tensor logits) override;

 private:
  std::unique_ptr<SplitAttention> MakeSplitAttention() const;

  // Rows of one MLP: x [rows, hidden] dense; product [rows, intermediate] is scratch.
  struct MlpRows {
    const CpuMlp* mlp;
    const BF16* x;
    int64_t rows;
    BF16* product;
  };
  // Adds gate, up and down to the operation; destination(job, row) is where that row of the result
  // starts.
  template <typename Destination>
  void AddMlps(std::span<const MlpRows> work, const Destination& destination);

  // The order matters: later members refer to earlier ones.
  const std::string cpu_name_;
  const VectorOps& ops_;
  // fma_ is there in every family: the router is multiplied by it.
  const FmaGemmFamily fma_;
  const std::optional<TileGemmFamily> tiled_;
  const Int8GemmFamily int8_;
  const CpuGemm family_;
  const Quantization quantization_;
  const KvType kv_type_;
  const PromptAttention prompt_attention_;
  StepChecks checks_;
  ThreadPool pool_;
  WeightLoader loader_;
  GemmRunner gemms_;
  const std::unique_ptr<SplitAttention> split_attention_;
  AttentionRunner attention_;
  AttentionStep attention_step_;  // from AttentionIn to AttentionOut of a layer
  PairsByExpert by_expert_;
  RopeTable rope_;
  // Scratch of operations; nothing in it outlives one.
  ReusableMemory logits_, gathered_, product_, head_rows_, sums_;
};

}  // namespace epic::kernels
