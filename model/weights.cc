#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/number.h"

namespace epic::model {
namespace {

using kernels::DType;

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

}  // namespace

int64_t BoundWeight::source_bytes() const { return source.data_bytes() + source.scale_bytes(); }

std::vector<const BoundWeight*> BoundLayer::all() const {
  std::vector<const BoundWeight*> result;
  const auto add = [&](const BoundWeight& weight) {
    if (!weight.name.empty()) result.push_back(&weight);
  };
  for (const BoundWeight* weight : {&input_norm, &q_a, &q_a_norm, &q, &kv_a, &kv_a_norm, &kv_b, &o,
                                    &mlp_norm, &router, &correction_bias}) {
    add(*weight);
  }
  const auto add_mlp = [&](const std::optional<BoundMlp>& mlp) {
    if (!mlp) return;
    for (const BoundWeight* weight : {&mlp->gate, &mlp->up, &mlp->down}) add(*weight);
  };
  add_mlp(dense);
  add_mlp(shared);
  for (const std::optional<BoundMlp>& expert : experts) add_mlp(expert);
  return result;
}

absl::StatusOr<BoundWeight> WeightBinder::Linear(const std::string& name, int64_t rows,
                                                 int64_t cols) const {
  // compressed-tensors stores a packed weight under another name, and never under both.
  const bool packed = checkpoint_.Find(name) == nullptr &&
                      checkpoint_.Find(absl::StrCat(name, "_packed")) != nullptr;
  return packed ? PackedInt4(name, rows, cols) : Bind(name, {rows, cols}, true);
}

absl::StatusOr<BoundWeight> WeightBinder::Plain(const std::string& name, int64_t rows,
                                                int64_t cols) const {
  return Bind(name, {rows, cols}, false);
}

absl::StatusOr<BoundWeight> WeightBinder::Vector(const std::string& name, int64_t count) const {
  return Bind(name, {count}, false);
}

absl::StatusOr<BoundMlp> WeightBinder::Mlp(const std::string& prefix, int64_t intermediate) const {
  const int64_t hidden = config_.hidden_size;
  BoundMlp mlp;
  ASSIGN_OR_RETURN(mlp.gate,
                   Linear(absl::StrCat(prefix, "gate_proj.weight"), intermediate, hidden));
  ASSIGN_OR_RETURN(mlp.up, Linear(absl::StrCat(prefix, "up_proj.weight"), intermediate, hidden));
  ASSIGN_OR_RETURN(mlp.down,
                   Linear(absl::StrCat(prefix, "down_proj.weight"), hidden, intermediate));
  // They are multiplied by the same rows, quantised or not.
  const DType gate = mlp.gate.source.dtype;
  const DType up = mlp.up.source.dtype;
  const auto integer = [](DType dtype) { return dtype == DType::kI8 || dtype == DType::kI4; };
  if (gate != up && (integer(gate) || integer(up))) {
    return Invalid("tensors ", mlp.gate.name, " and ", mlp.up.name,
                   " are of two types; integers must be the same in both");
  }
  return mlp;
}

absl::Status WeightBinder::BindAttention(const std::string& prefix, BoundLayer& bound) const {
  const ModelConfig& c = config_;
  const int64_t hidden = c.hidden_size;
  const int64_t heads = c.head_count;
  const auto name = [&](const char* suffix) { return absl::StrCat(prefix, "self_attn.", suffix); };
  if (c.q_lora_rank > 0) {
    ASSIGN_OR_RETURN(bound.q_a, Linear(name("q_a_proj.weight"), c.q_lora_rank, hidden));
    ASSIGN_OR_RETURN(bound.q_a_norm, Vector(name("q_a_layernorm.weight"), c.q_lora_rank));
    ASSIGN_OR_RETURN(bound.q,
                     Linear(name("q_b_proj.weight"), heads * c.qk_head_dim(), c.q_lora_rank));
  } else {
    ASSIGN_OR_RETURN(bound.q, Linear(name("q_proj.weight"), heads * c.qk_head_dim(), hidden));
  }
  ASSIGN_OR_RETURN(bound.kv_a, Linear(name("kv_a_proj_with_mqa.weight"),
                                      c.kv_lora_rank + c.qk_rope_head_dim, hidden));
  ASSIGN_OR_RETURN(bound.kv_a_norm, Vector(name("kv_a_layernorm.weight"), c.kv_lora_rank));
  ASSIGN_OR_RETURN(bound.kv_b, Linear(name("kv_b_proj.weight"),
                                      heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank));
  ASSIGN_OR_RETURN(bound.o, Linear(name("o_proj.weight"), hidden, heads * c.v_head_dim));
  return absl::OkStatus();
}

absl::Status WeightBinder::BindExperts(const std::string& prefix, const std::vector<bool>& wanted,
                                       BoundLayer& bound) const {
  const ModelConfig& c = config_;
  ASSIGN_OR_RETURN(bound.router,
                   Plain(absl::StrCat(prefix, "gate.weight"), c.expert_count, c.hidden_size));
  if (c.gate_method == GateMethod::kNoAuxTc) {
    ASSIGN_OR_RETURN(bound.correction_bias,
                     Vector(absl::StrCat(prefix, "gate.e_score_correction_bias"), c.expert_count));
  }
  if (c.shared_expert_count > 0) {
    ASSIGN_OR_RETURN(bound.shared,
                     Mlp(absl::StrCat(prefix, "shared_experts."), c.shared_intermediate_size()));
  }
  // Experts that this rank does not hold stay empty; their tensors are never looked for.
  bound.experts.resize(c.expert_count);
  for (int e = 0; e < c.expert_count; ++e) {
    if (!wanted.empty() && !wanted[e]) continue;
    ASSIGN_OR_RETURN(bound.experts[e], Expert(prefix, e));
  }
  return absl::OkStatus();
}

absl::StatusOr<BoundMlp> WeightBinder::Expert(const std::string& prefix, int expert) const {
  return Mlp(absl::StrCat(prefix, "experts.", expert, "."), config_.expert_intermediate_size);
}

absl::StatusOr<BoundMlp> WeightBinder::BindExpert(int layer, int expert) const {
  return Expert(absl::StrCat("model.layers.", layer, ".mlp."), expert);
}

absl::StatusOr<BoundLayer> WeightBinder::BindLayer(int layer,
                                                   const std::vector<bool>& wanted) const {
  CHECK(layer >= 0 && layer < config_.layer_count) << " layer " << layer;
  CHECK(wanted.empty() || static_cast<int>(wanted.size()) == config_.expert_count)
      << " wanted " << wanted.size() << " of " << config_.expert_count;
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  BoundLayer bound;
  ASSIGN_OR_RETURN(bound.input_norm,
                   Vector(absl::StrCat(prefix, "input_layernorm.weight"), config_.hidden_size));
  ASSIGN_OR_RETURN(bound.mlp_norm, Vector(absl::StrCat(prefix, "post_attention_layernorm.weight"),
                                          config_.hidden_size));
  RETURN_IF_ERROR(BindAttention(prefix, bound));
  const std::string mlp = absl::StrCat(prefix, "mlp.");
  if (config_.is_sparse(layer)) {
    RETURN_IF_ERROR(BindExperts(mlp, wanted, bound));
  } else {
    ASSIGN_OR_RETURN(bound.dense, Mlp(mlp, config_.intermediate_size));
  }
  return bound;
}

absl::StatusOr<BoundEnds> WeightBinder::BindEnds() const {
  BoundEnds ends;
  ASSIGN_OR_RETURN(ends.embedding,
                   Plain("model.embed_tokens.weight", config_.vocab_size, config_.hidden_size));
  ASSIGN_OR_RETURN(ends.final_norm, Vector("model.norm.weight", config_.hidden_size));
  // The head then reads the embedding's own bytes, and is packed from them.
  if (config_.tied_embeddings) {
    ends.head = ends.embedding;
  } else {
    ASSIGN_OR_RETURN(ends.head, Plain("lm_head.weight", config_.vocab_size, config_.hidden_size));
  }
  return ends;
}

int64_t PackedBytes(const kernels::SourceMatrix& source, kernels::Quantization quantization) {
  // An upper bound over all families, so that the memory plan never promises too little: panels are
  // padded, and each allocation may lose most of a page.
  CHECK(source.rows > 0 && source.cols > 0) << " [" << source.rows << ", " << source.cols << "]";
  constexpr int64_t kPanelRows = 16;
  constexpr int64_t kPackedCols = 64;  // columns are padded to it at most
  constexpr int64_t kAllocationBytes = 4096;
  const auto padded = [](int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; };
  const int64_t panels = padded(source.rows, kPanelRows) / kPanelRows;
  const int64_t cols = padded(source.cols, kPackedCols);
  const int64_t values = panels * kPanelRows * cols;
  switch (kernels::PackedDType(source.dtype, source.cols, quantization)) {
    case DType::kI4:  // a scale of two bytes for each group
      return values / 2 + values / kernels::kInt4Group * 2 + panels * 64 + kAllocationBytes;
    case DType::kI8:
      return values + panels * 128 + kAllocationBytes;
    case DType::kF8E4M3:
      return values + panels * (128 + 4 * (cols / kernels::kScaleBlock + 1)) + kAllocationBytes;
    default:  // a router that is not BF16 becomes F32
      return values * (source.dtype == DType::kBF16 ? 2 : 4) + panels * 64 + kAllocationBytes;
  }
}

void ReleaseSource(const BoundWeight& weight) {
  if (weight.name.empty()) return;
  const int64_t bytes = weight.source.data_bytes();
  if (bytes > 0) Checkpoint::Release(weight.source.data, bytes);
}

std::vector<float> ReadVector(const BoundWeight& weight) {
  if (weight.name.empty()) return {};
  std::vector<float> values(weight.source.cols);
  kernels::ReadSource(weight.source, 0, 0, weight.source.cols, values.data());
  return values;
}

}  // namespace epic::model
