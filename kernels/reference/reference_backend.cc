#include "kernels/reference/reference_backend.h"

#include <cstdlib>
#include <cstring>

#include "kernels/check.h"
#include "kernels/flush_denormals.h"
#include "kernels/handle.h"
#include "kernels/math.h"
#include "kernels/number.h"
#include "kernels/numerics.h"
#include "kernels/reference/attend.h"
#include "kernels/reference/reference_attention.h"
#include "kernels/reference/reference_weights.h"
#include "kernels/reference/rows.h"
#include "kernels/reference/shadow.h"
#include "kernels/rope_table.h"
#include "kernels/step_checks.h"

namespace epic::kernels {
namespace {

class HeapMemory : public Memory {
 public:
  explicit HeapMemory(int64_t bytes)
      : bytes_(bytes),
        // Tensors are promised 64-byte alignment. The size is rounded up, as aligned_alloc wants
        // it, and never 0.
        data_(static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 64) / 64 * 64))) {
    KERNEL_CHECK(data_ != nullptr, "%ld bytes", bytes);
    std::memset(data_, 0, bytes);
  }
  ~HeapMemory() override { std::free(data_); }
  std::byte* data() override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  int64_t bytes_;
  std::byte* data_;
};

// What sets a family of BF16 products apart. Each has its own file for attention.
struct Family {
  const char* name;  // in the numeric profile
  bool odd_first;    // products take inputs in pairs, the odd one of each first
  AttendSplit attend_split;
};
// amx-bf16 is not among them: its kernels are compared over an emulated tile unit
// (amx_emulated_tiles.h).
constexpr Family kFma = {"fma", false, AttendSplitFma};
constexpr Family kAvx512Bf16 = {"avx512-bf16", true, AttendSplitAvx512Bf16};

class ReferenceBackend : public Backend {
 public:
  explicit ReferenceBackend(const ReferenceOptions& options)
      : options_(options),
        family_(options.avx512_bf16 ? kAvx512Bf16 : kFma),
        rounded_(options.round_to_bf16),
        expanded_(options.prompt_attention == PromptAttention::kExpanded),
        checks_(options.kv_type),
        // Twins exist only where nothing is rounded.
        shadows_(!rounded_),
        attention_(family_.attend_split, rounded_, expanded_, shadows_) {
    // The other options name roundings of the profile, and without any rounding there is nothing
    // for them to change.
    const bool plain = options.quantization == Quantization::kNone && !options.avx512_bf16 &&
                       !options.fp8_activations && options.kv_type == KvType::kBF16;
    KERNEL_CHECK(rounded_ || plain, "FP32 throughout allows no other option");
  }

  std::string profile() const override {
    if (!rounded_) {
      return NumericProfile("reference", "w:f32,a:f32", "f32", options_.prompt_attention);
    }
    return NumericProfile(family_.name, ProfileTypes(options_.quantization),
                          KvTypeName(options_.kv_type), options_.prompt_attention);
  }
  KvType kv_type() const override { return options_.kv_type; }
  // AttentionIn leaves q_nope by the row's number in the whole plan, and a slice counts its rows
  // anew.
  bool attends_slices() const override { return !expanded_; }
  std::string description() const override { return "reference, 1 thread"; }

  std::unique_ptr<Memory> Allocate(int64_t bytes, MemoryUse use) override {
    return std::make_unique<HeapMemory>(bytes);
  }

  std::unique_ptr<Matrix> LoadMatrix(const SourceMatrix& source) override {
    CheckSource(source);
    return std::make_unique<ReferenceMatrix>(MakeMatrix(source));
  }

  std::unique_ptr<Mlp> LoadMlp(const SourceMatrix& gate, const SourceMatrix& up,
                               const SourceMatrix& down) override {
    CheckMlpSources(gate, up, down);
    auto mlp = std::make_unique<ReferenceMlp>();
    mlp->gate = MakeMatrix(gate);
    mlp->up = MakeMatrix(up);
    mlp->down = MakeMatrix(down);
    mlp->hidden = gate.cols;
    mlp->intermediate = gate.rows;
    mlp->packed_bytes = mlp->gate.packed_bytes + mlp->up.packed_bytes + mlp->down.packed_bytes;
    return mlp;
  }

  std::unique_ptr<Attention> LoadAttention(const AttentionSource& source) override {
    CheckAttentionSource(source);
    const AttentionShape& shape = source.shape;
    auto attention = std::make_unique<ReferenceAttention>();
    attention->shape = shape;
    attention->input_norm.assign(source.input_norm.begin(), source.input_norm.end());
    attention->kv_a_norm.assign(source.kv_a_norm.begin(), source.kv_a_norm.end());
    if (shape.q_rank > 0) {
      attention->q_a_norm.assign(source.q_a_norm.begin(), source.q_a_norm.end());
      attention->q_a = MakeMatrix(source.q_a);
    }
    attention->q = MakeMatrix(source.q);
    attention->kv_a = MakeMatrix(source.kv_a);
    attention->o = MakeMatrix(source.o);
    for (int h = 0; h < shape.heads; ++h) {
      const int64_t row = h * int64_t{shape.nope_dim + shape.v_dim};
      // kv_b has for each head the rows of W_UK, then those of W_UV (kv_b.h).
      attention->w_uk.push_back(SliceKvB(source.kv_b, row, shape.nope_dim, true, rounded_));
      attention->w_uv.push_back(
          SliceKvB(source.kv_b, row + shape.nope_dim, shape.v_dim, false, rounded_));
      attention->w_k.push_back(SliceKvB(source.kv_b, row, shape.nope_dim, false, rounded_));
      attention->w_uk.back().odd_first = family_.odd_first;
      attention->w_uv.back().odd_first = family_.odd_first;
      attention->w_k.back().odd_first = family_.odd_first;
    }
    attention->packed_bytes = attention->q_a.packed_bytes + attention->q.packed_bytes +
                              attention->kv_a.packed_bytes + attention->o.packed_bytes;
    return attention;
  }

  std::unique_ptr<Gate> LoadGate(const GateShape& shape, const SourceMatrix& weight,
                                 std::span<const float> correction_bias) override {
    CheckGateSource(shape, weight, correction_bias);
    auto gate = std::make_unique<ReferenceGate>(shape, correction_bias);
    // The router is FP32 in every profile, however the backend rounds.
    gate->weight = MakeReferenceF32Matrix(weight);
    return gate;
  }

  void BeginStep(const StepPlan& plan, const Rope& rope) override {
    checks_.Begin(plan, rope);
    // Twins live for a step: rows of earlier steps are not read again.
    shadows_.Clear();
    rope_.Fill(plan, rope);
  }

  void Embed(const StepPlan& plan, const SourceMatrix& table, Tensor residual) override {
    checks_.Embed(plan, table, residual);
    for (int t = 0; t < plan.rows(); ++t) {
      // The residual is FP32, so the embedding is not rounded.
      ReadSource(table, plan.token_ids[t], 0, table.cols, residual.Row<float>(t));
    }
  }

  void AttentionIn(const Attention& base, const StepPlan& plan, const KvView& kv, int layer,
                   Tensor residual, Tensor query) override {
    // The calling thread computes, and denormals are zero on every compute thread.
    const ScopedFlushDenormals flush;
    checks_.AttentionIn(base.shape, plan, kv, layer, residual, query);
    attention_step_ =
        attention_.In(HandleAs<ReferenceAttention>(base), plan, rope_, kv, layer, residual, query);
  }
  void Attend(const Attention& base, const StepPlan& plan, const KvView& kv, int layer,
              Tensor query, Tensor output) override {
    const ScopedFlushDenormals flush;
    checks_.Attend(base.shape, plan, kv, layer, query, output);
    attention_.Attend(attention_step_, HandleAs<ReferenceAttention>(base), plan, kv, layer, query,
                      output);
  }
  void AttentionOut(const Attention& base, Tensor output, Tensor residual) override {
    const ScopedFlushDenormals flush;
    StepChecks::AttentionOut(base.shape, output, residual);
    attention_.Out(attention_step_, HandleAs<ReferenceAttention>(base), output, residual);
  }

  void Norm(Tensor weight, float eps, Tensor residual, Tensor rows) override {
    const ScopedFlushDenormals flush;
    StepChecks::Norm(weight, residual, rows);
    for (int64_t t = 0; t < residual.rows; ++t) {
      shadows_.Store(RmsNorm(residual.Row<float>(t), Values(weight), eps), rows.Row<BF16>(t));
    }
  }

  void ChooseExperts(const Gate& base, const GateResult& result) override {
    const ScopedFlushDenormals flush;
    const auto& gate = HandleAs<ReferenceGate>(base);
    StepChecks::ChooseExperts(gate.shape, result);
    for (int64_t t = 0; t < result.rows.rows; ++t) {
      const Row logits =
          Multiply(gate.weight, shadows_.Load(result.rows.Row<BF16>(t), result.rows.cols));
      // A NaN ends that row's request alone, so it is reported for its row.
      const bool sound = gate.chooser.Choose(logits.data(), result.experts.Row<int32_t>(t),
                                             result.weights.Row<float>(t));
      *result.faults.Row<uint8_t>(t) = sound ? 0 : 1;
    }
  }

  void Experts(std::span<const Mlp* const> experts, Tensor rows, std::span<const ExpertRow> pairs,
               Tensor out) override {
    const ScopedFlushDenormals flush;
    StepChecks::Experts(experts, rows, pairs, out);
    for (size_t i = 0; i < pairs.size(); ++i) {
      Apply(*experts[pairs[i].expert], rows, pairs[i].row, out, static_cast<int64_t>(i));
    }
  }

  void ApplyMlp(const Mlp& mlp, Tensor rows, Tensor out) override {
    const ScopedFlushDenormals flush;
    StepChecks::ApplyMlp(mlp, rows, out);
    for (int64_t t = 0; t < rows.rows; ++t) Apply(mlp, rows, t, out, t);
  }

  void Combine(Tensor shared, Tensor expert_rows, Tensor weights, Tensor residual) override {
    const ScopedFlushDenormals flush;
    StepChecks::Combine(shared, expert_rows, weights, residual);
    for (int64_t t = 0; t < residual.rows; ++t) {
      // Shared expert first, then by ascending expert id, then one addition to the residual.
      Row sum(residual.cols);
      if (shared.data != nullptr) sum = shadows_.Load(shared.Row<BF16>(t), shared.cols);
      for (int64_t j = 0; j < weights.cols; ++j) {
        const Row y = shadows_.Load(expert_rows.Row<BF16>(t * weights.cols + j), expert_rows.cols);
        const float weight = weights.Row<float>(t)[j];
        for (int64_t i = 0; i < residual.cols; ++i) sum[i] = Fma(weight, y[i], sum[i]);
      }
      for (int64_t i = 0; i < residual.cols; ++i) residual.Row<float>(t)[i] += sum[i];
    }
  }

  void Head(Tensor norm, float eps, const Matrix& head, const StepPlan& plan, Tensor residual,
            Tensor logits) override {
    const ScopedFlushDenormals flush;
    StepChecks::Head(head, plan, norm, residual, logits);
    for (size_t i = 0; i < plan.logit_rows.size(); ++i) {
      // The logits themselves stay FP32.
      const Row x = Round(RmsNorm(residual.Row<float>(plan.logit_rows[i]), Values(norm), eps));
      HandleAs<ReferenceMatrix>(head).Multiply(x.data(), logits.Row<float>(i));
    }
  }

 private:
  ReferenceMatrix MakeMatrix(const SourceMatrix& source) const {
    // FP32 throughout means that FP8 and integer weights are dequantised too.
    if (!rounded_) return MakeReferenceF32Matrix(source);
    ReferenceMatrix matrix = MakeReferenceMatrix(source, options_.quantization);
    matrix.odd_first = family_.odd_first;
    // Rows are quantised only where they meet FP8 weights, as family sm90 does it.
    matrix.quantised_rows = options_.fp8_activations && !matrix.scales.empty();
    return matrix;
  }

  Row Round(Row values) const {
    if (rounded_) {
      for (float& value : values) value = RoundToBF16(value);
    }
    return values;
  }

  void Apply(const Mlp& base, Tensor rows, int64_t from, Tensor out, int64_t to) {
    const auto& mlp = HandleAs<ReferenceMlp>(base);
    const Row x = shadows_.Load(rows.Row<BF16>(from), rows.cols);
    Row product = Multiply(mlp.gate, x);
    const Row up = Multiply(mlp.up, x);
    // The product stays FP32 until it is rounded once, before it meets W_down.
    for (size_t i = 0; i < product.size(); ++i) product[i] = Silu(product[i]) * up[i];
    shadows_.Store(Multiply(mlp.down, Round(product)), out.Row<BF16>(to));
  }

  const ReferenceOptions options_;
  const Family& family_;
  const bool rounded_;
  const bool expanded_;
  StepChecks checks_;
  ShadowRows shadows_;
  ReferenceAttentionRunner attention_;
  ReferenceAttentionStep attention_step_;  // from AttentionIn to AttentionOut of a layer
  RopeTable rope_;
};

}  // namespace

std::unique_ptr<Backend> MakeReferenceBackend(const ReferenceOptions& options) {
  return std::make_unique<ReferenceBackend>(options);
}

}  // namespace epic::kernels
