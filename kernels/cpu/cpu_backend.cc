#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "kernels/cpu/amx_probe.h"
#include "kernels/cpu/cpu_attention.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/cpu_gemm.h"
#include "kernels/cpu/cpu_weights.h"
#include "kernels/cpu/fma_gemm.h"
#include "kernels/cpu/gemm_runner.h"
#include "kernels/cpu/int8_gemm.h"
#include "kernels/cpu/product_attention.h"
#include "kernels/cpu/tile_gemm.h"
#include "kernels/cpu/vector_ops.h"
#include "kernels/expert_order.h"
#include "kernels/flush_denormals.h"
#include "kernels/number.h"
#include "kernels/rope_table.h"

namespace epic::kernels {
namespace {

class CpuBackend : public Backend {
 public:
  // `tiled` null: family fma.
  CpuBackend(const CpuFeatures& features, const VectorOps& ops,
             const std::optional<TileGemmFamily>& tiled, const Int8GemmFamily& int8,
             const CpuOptions& options)
      : cpu_name_(features.name),
        ops_(ops),
        fma_(ops),
        tiled_(tiled),
        int8_(int8),
        family_(tiled_.has_value() ? static_cast<const GemmFamily&>(*tiled_) : fma_, int8_),
        quantization_(options.quantization),
        kv_type_(options.kv_type),
        prompt_attention_(options.prompt_attention),
        pool_(options.threads > 0 ? options.threads : ThreadPool::AvailableCores(),
              options.pin && options.ranks == 1, options.ranks),
        loader_(family_, fma_, options.quantization, options.prompt_attention, pool_),
        gemms_(pool_),
        split_attention_(MakeSplitAttention()),
        attention_(family_, *split_attention_, ops_, pool_, gemms_) {}

  std::string profile() const override {
    return std::string("epic-numerics-3/") + family_.name() + "/" + ProfileTypes(quantization_) +
           ",kv:" + KvTypeName(kv_type_) + "/" + PromptAttentionName(prompt_attention_) +
           "/split512";
  }
  KvType kv_type() const override { return kv_type_; }

  // Expanded, each slice would expand the keys of all before it.
  bool attends_slices() const override { return prompt_attention_ == PromptAttention::kAbsorbed; }
  std::string description() const override {
    return cpu_name_ + ", family " + family_.name() + ", " + ops_.name + ", INT8 on " +
           int8_.kernels_name() + ", " + std::to_string(pool_.threads()) +
           (pool_.pinned() ? " pinned" : "") + (pool_.threads() == 1 ? " thread" : " threads");
  }

  int threads() const { return pool_.threads(); }
  int64_t regions() const { return pool_.regions(); }

  void ForEach(int count, const std::function<void(int)>& task) override {
    pool_.ForEach(count, task);
  }
  void SetInterlude(std::function<void()> interlude) override {
    pool_.SetInterlude(std::move(interlude));
  }

  std::unique_ptr<Memory> Allocate(int64_t bytes, MemoryUse use) override {
    return std::make_unique<HugeMemory>(bytes);
  }
  std::unique_ptr<Matrix> LoadMatrix(const SourceMatrix& source) override {
    return loader_.Load(source);
  }
  std::unique_ptr<Mlp> LoadMlp(const SourceMatrix& gate, const SourceMatrix& up,
                               const SourceMatrix& down) override {
    return loader_.LoadMlp(gate, up, down);
  }
  std::unique_ptr<Attention> LoadAttention(const AttentionSource& source) override {
    return loader_.LoadAttention(source);
  }
  std::unique_ptr<Gate> LoadGate(const GateShape& shape, const SourceMatrix& weight,
                                 std::span<const float> correction_bias) override {
    return loader_.LoadGate(shape, weight, correction_bias);
  }

  void BeginStep(const StepPlan& plan, const Rope& rope) override { rope_.Fill(plan, rope); }

  void Embed(const StepPlan& plan, const SourceMatrix& table, Tensor residual) override {
    for (int t = 0; t < plan.rows(); ++t) {
      ReadSource(table, plan.token_ids[t], 0, table.cols, residual.Row<float>(t));
    }
  }

  void AttentionIn(const Attention& attention, const StepPlan& plan, const KvView& kv, int layer,
                   Tensor residual, Tensor query) override {
    const ScopedFlushDenormals flush;
    attention_step_ = attention_.In(static_cast<const CpuAttention&>(attention), plan, rope_, kv,
                                    layer, residual, query);
  }
  void Attend(const Attention& attention, const StepPlan& plan, const KvView& kv, int layer,
              Tensor query, Tensor output) override {
    const ScopedFlushDenormals flush;
    attention_.Attend(attention_step_, static_cast<const CpuAttention&>(attention), plan, kv, layer,
                      query, output);
  }
  void AttentionOut(const Attention& attention, Tensor output, Tensor residual) override {
    const ScopedFlushDenormals flush;
    attention_.Out(attention_step_, static_cast<const CpuAttention&>(attention), output, residual);
  }

  void Norm(Tensor weight, float eps, Tensor residual, Tensor rows) override {
    const ScopedFlushDenormals flush;
    gemms_.Rows(residual.rows, 8 * residual.cols, [&](int64_t t, int) {
      ops_.rms_norm(residual.Row<float>(t), weight.As<float>(), residual.cols, eps,
                    rows.Row<BF16>(t));
    });
    gemms_.Run();
  }

  void ChooseExperts(const Gate& base, const GateResult& result) override;
  void Experts(std::span<const Mlp* const> experts, Tensor rows, std::span<const ExpertRow> pairs,
               Tensor out) override;
  void ApplyMlp(const Mlp& base, Tensor rows, Tensor out) override;
  void Combine(Tensor shared, Tensor expert_rows, Tensor weights, Tensor residual) override;
  void Head(Tensor norm, float eps, const Matrix& head, const StepPlan& plan, Tensor residual,
            Tensor logits) override;

 private:
  std::unique_ptr<SplitAttention> MakeSplitAttention() const {
    if (tiled_.has_value()) return std::make_unique<ProductAttention>(*tiled_, ops_);
    return std::make_unique<VectorAttention>(ops_);
  }

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

  const std::string cpu_name_;
  const VectorOps& ops_;
  const FmaGemmFamily fma_;
  const std::optional<TileGemmFamily> tiled_;
  const Int8GemmFamily int8_;
  const CpuGemm family_;
  const Quantization quantization_;
  const KvType kv_type_;
  const PromptAttention prompt_attention_;
  ThreadPool pool_;
  WeightLoader loader_;
  GemmRunner gemms_;
  const std::unique_ptr<SplitAttention> split_attention_;
  AttentionRunner attention_;
  AttentionStep attention_step_;  // from AttentionIn to AttentionOut of a layer
  ExpertOrder order_;
  RopeTable rope_;
  ReusableMemory logits_, gathered_, product_, head_rows_, sums_;
};

void CpuBackend::ChooseExperts(const Gate& base, const GateResult& result) {
  const ScopedFlushDenormals flush;
  const auto& gate = static_cast<const CpuGate&>(base);
  const int64_t rows = result.rows.rows;
  const int64_t experts = gate.shape.experts;
  auto* logits = logits_.Get<float>(rows * experts);
  gemms_.Products(fma_, {{result.rows.As<BF16>(), result.rows.cols, rows, gate.weight, {}}},
                  [&](const GemmBlock& block) { block.CopyTo(logits, experts); });
  gemms_.Rows(rows, 64 * experts, [&](int64_t t, int) {
    const bool sound = gate.chooser.Choose(logits + t * experts, result.experts.Row<int32_t>(t),
                                           result.weights.Row<float>(t));
    *result.faults.Row<uint8_t>(t) = sound ? 0 : 1;
  });
  gemms_.Run();
}

template <typename Destination>
void CpuBackend::AddMlps(std::span<const MlpRows> work, const Destination& destination) {
  std::vector<GemmJob> up, down;
  for (const MlpRows& w : work) {
    up.push_back({w.x, w.mlp->hidden, w.rows, w.mlp->gate, w.mlp->up});
    down.push_back({w.product, w.mlp->intermediate, w.rows, w.mlp->down, {}});
  }
  gemms_.Products(family_, std::move(up), [this, work](const GemmBlock& block) {
    const MlpRows& w = work[block.job];
    for (int64_t t = block.row_begin; t < block.row_end; ++t) {
      ops_.silu_multiply(block.Row(t), block.SecondRow(t), block.columns(),
                         w.product + t * w.mlp->intermediate + block.n_begin);
    }
  });
  gemms_.Products(family_, std::move(down), [this, destination](const GemmBlock& block) {
    for (int64_t t = block.row_begin; t < block.row_end; ++t) {
      ops_.to_bf16(block.Row(t), block.columns(), destination(block.job, t) + block.n_begin);
    }
  });
}

void CpuBackend::Experts(std::span<const Mlp* const> experts, Tensor rows,
                         std::span<const ExpertRow> pairs, Tensor out) {
  if (pairs.empty()) return;
  const ScopedFlushDenormals flush;
  order_.Sort(pairs, static_cast<int>(experts.size()));
  const std::span<const int32_t> order = order_.pairs();
  const std::span<const ExpertOrder::Group> groups = order_.groups();
  const int64_t hidden = rows.cols;
  auto* gathered = gathered_.Get<BF16>(static_cast<int64_t>(pairs.size()) * hidden);
  int64_t product_values = 0;
  std::vector<MlpRows> work;
  for (const ExpertOrder::Group& group : groups) {
    const auto* mlp = static_cast<const CpuMlp*>(experts[group.expert]);
    // A single row stays where it is.
    const BF16* x = group.count == 1 ? rows.Row<BF16>(pairs[order[group.first]].row)
                                     : gathered + group.first * hidden;
    work.push_back({mlp, x, group.count, nullptr});
    product_values += group.count * mlp->intermediate;
  }
  auto* product = product_.Get<BF16>(product_values);
  for (MlpRows& w : work) {
    w.product = product;
    product += w.rows * w.mlp->intermediate;
  }
  if (groups.size() < pairs.size()) {
    gemms_.Rows(static_cast<int64_t>(pairs.size()), 2 * hidden, [&](int64_t i, int) {
      std::memcpy(gathered + i * hidden, rows.Row<BF16>(pairs[order[i]].row), 2 * hidden);
    });
  }
  AddMlps(work,
          [&](int job, int64_t row) { return out.Row<BF16>(order[groups[job].first + row]); });
  gemms_.Run();
}

void CpuBackend::ApplyMlp(const Mlp& base, Tensor rows, Tensor out) {
  if (rows.rows == 0) return;
  const ScopedFlushDenormals flush;
  const auto& mlp = static_cast<const CpuMlp&>(base);
  const MlpRows work{&mlp, rows.As<BF16>(), rows.rows,
                     product_.Get<BF16>(rows.rows * mlp.intermediate)};
  AddMlps({&work, 1}, [&](int, int64_t row) { return out.Row<BF16>(row); });
  gemms_.Run();
}

void CpuBackend::Combine(Tensor shared, Tensor expert_rows, Tensor weights, Tensor residual) {
  const ScopedFlushDenormals flush;
  const int64_t hidden = residual.cols;
  auto* sums = sums_.Get<float>(pool_.threads() * hidden);
  gemms_.Rows(residual.rows, 2 * hidden * (weights.cols + 4), [&](int64_t t, int thread) {
    float* sum = sums + thread * hidden;
    if (shared.data != nullptr) {
      ops_.widen(shared.Row<BF16>(t), hidden, sum);
    } else {
      std::fill_n(sum, hidden, 0.0f);
    }
    for (int64_t j = 0; j < weights.cols; ++j) {
      ops_.add_scaled(weights.Row<float>(t)[j], expert_rows.Row<BF16>(t * weights.cols + j), hidden,
                      sum);
    }
    ops_.add(sum, hidden, residual.Row<float>(t));
  });
  gemms_.Run();
}

void CpuBackend::Head(Tensor norm, float eps, const Matrix& head, const StepPlan& plan,
                      Tensor residual, Tensor logits) {
  const auto count = static_cast<int64_t>(plan.logit_rows.size());
  if (count == 0) return;
  const ScopedFlushDenormals flush;
  const int64_t hidden = residual.cols;
  auto* rows = head_rows_.Get<BF16>(count * hidden);
  gemms_.Rows(count, 8 * hidden, [&](int64_t i, int) {
    ops_.rms_norm(residual.Row<float>(plan.logit_rows[i]), norm.As<float>(), hidden, eps,
                  rows + i * hidden);
  });
  const PackedWeight& weight = static_cast<const CpuMatrix&>(head).weight;
  gemms_.Products(family_, {{rows, hidden, count, weight, {}}},
                  [&](const GemmBlock& block) { block.CopyTo(logits.As<float>(), logits.cols); });
  gemms_.Run();
}

// The family of options.family; none: fma. An error or a note goes to `result`.
std::optional<TileGemmFamily> ChooseTiled(const CpuFeatures& features, const CpuOptions& options,
                                          CpuBackendResult& result) {
  const bool automatic = options.family == CpuFamily::kAuto;
  if (options.family == CpuFamily::kAmxBf16 || automatic) {
    if (options.emulate_amx && !automatic) return TileGemmFamily(EmulatedAmxKernels());
    if (AmxFailure().empty()) return TileGemmFamily(RealAmxKernels());
    if (!automatic) result.error = "family amx-bf16 cannot run: " + AmxFailure();
  }
  if (options.family == CpuFamily::kAvx512Bf16 && !features.avx512_bf16) {
    result.error = "family avx512-bf16 cannot run: this CPU (" + features.name +
                   ") lacks AVX-512 BF16 or VBMI";
    return std::nullopt;
  }
  const bool fast = automatic && features.fast_bf16 && options.vectors != CpuVectors::kAvx2;
  if (automatic) {
    result.note = std::string("family ") + (fast ? "avx512-bf16: " : "fma: ") + AmxFailure();
  }
  if (fast || options.family == CpuFamily::kAvx512Bf16) {
    return TileGemmFamily(RealAvx512Bf16Kernels());
  }
  return std::nullopt;
}

// The fastest; all have the same bits.
Int8GemmFamily ChooseInt8(const CpuFeatures& features, const CpuOptions& options) {
  if (options.emulate_amx && options.family == CpuFamily::kAmxBf16) {
    return Int8GemmFamily(EmulatedAmxKernels());
  }
  if (options.vectors == CpuVectors::kAuto && AmxFailure().empty()) {
    return Int8GemmFamily(RealAmxKernels());
  }
  const bool vnni = features.avx512_vnni && options.vectors != CpuVectors::kAvx2;
  return Int8GemmFamily(vnni ? VnniInt8Kernels() : Avx2Int8Kernels());
}

}  // namespace

CpuBackendResult MakeCpuBackend(const CpuOptions& options) {
  CpuBackendResult result;
  const CpuFeatures features = DetectCpuFeatures();
  if (!features.avx2) {
    result.error = "this CPU (" + features.name + ") lacks AVX2, FMA or F16C, which EPIC needs";
    return result;
  }
  if (options.vectors == CpuVectors::kAvx512 && !features.avx512) {
    result.error = "this CPU (" + features.name + ") lacks AVX-512 F, BW, DQ or VL";
    return result;
  }
  const std::optional<TileGemmFamily> tiled = ChooseTiled(features, options, result);
  if (!result.error.empty()) return result;
  const bool wide = features.avx512 && options.vectors != CpuVectors::kAvx2;
  const VectorOps& ops = wide ? Avx512VectorOps() : Avx2VectorOps();
  result.backend =
      std::make_unique<CpuBackend>(features, ops, tiled, ChooseInt8(features, options), options);
  return result;
}

CpuOptions ParseCpuFlags(const CpuFlags& flags) {
  CpuOptions options{.threads = flags.threads, .pin = flags.pin_threads == "on"};
  if (flags.numerics == "fma") options.family = CpuFamily::kFma;
  if (flags.numerics == "avx512-bf16") options.family = CpuFamily::kAvx512Bf16;
  if (flags.numerics == "amx-bf16") options.family = CpuFamily::kAmxBf16;
  if (flags.quantization == "int8") options.quantization = Quantization::kInt8;
  if (flags.quantization == "int4") options.quantization = Quantization::kInt4;
  if (flags.kv_cache_dtype == "fp8") options.kv_type = KvType::kFP8;
  if (flags.prompt_attention == "expanded") options.prompt_attention = PromptAttention::kExpanded;
  return options;
}

int ComputeThreads(const Backend& cpu_backend) {
  return static_cast<const CpuBackend&>(cpu_backend).threads();
}

int64_t ParallelRegions(const Backend& cpu_backend) {
  return static_cast<const CpuBackend&>(cpu_backend).regions();
}

}  // namespace epic::kernels
