#include "model/model.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/number.h"
#include "model/rope.h"
#include "model/weights.h"

namespace epic::model {
namespace {

using kernels::DType;

// Checked against transformers' logits (tests/golden: moonlight has another epsilon).
constexpr float kInnerNormEps = 1e-6f;  // whatever rms_norm_eps is, as transformers has it

std::vector<bool> WantedExperts(const ModelConfig& config, const LoadOptions& options, int layer) {
  // Empty means all.
  if (!options.wants_expert || !config.is_sparse(layer)) return {};
  std::vector<bool> wanted(config.expert_count);
  for (int e = 0; e < config.expert_count; ++e) wanted[e] = options.wants_expert(layer, e);
  return wanted;
}

// W_UK, for expanded prompts once more the other way round, and W_UV of each head, in BF16.
int64_t SplitKvBytes(const ModelConfig& config, kernels::PromptAttention prompt_attention) {
  int64_t bytes = PackedBytes({DType::kBF16, config.kv_lora_rank, config.qk_nope_head_dim}) +
                  PackedBytes({DType::kBF16, config.v_head_dim, config.kv_lora_rank});
  if (prompt_attention == kernels::PromptAttention::kExpanded) {
    bytes += PackedBytes({DType::kBF16, config.qk_nope_head_dim, config.kv_lora_rank});
  }
  return config.head_count * bytes;
}

kernels::AttentionShape AttentionShapeOf(const ModelConfig& config) {
  return {.hidden = config.hidden_size,
          .heads = config.head_count,
          .q_rank = config.q_lora_rank,
          .kv_rank = config.kv_lora_rank,
          .nope_dim = config.qk_nope_head_dim,
          .rope_dim = config.qk_rope_head_dim,
          .v_dim = config.v_head_dim,
          .norm_eps = static_cast<float>(config.rms_norm_eps),
          .inner_norm_eps = kInnerNormEps,
          .softmax_scale = static_cast<float>(SoftmaxScale(config)),
          .rope_interleaved = config.rope_interleaved};
}

kernels::GateShape GateShapeOf(const ModelConfig& config) {
  using kernels::GroupScore;
  GroupScore group_score = GroupScore::kNone;
  // DeepSeek-V2 scores a group by its best expert, V3 by the sum of its best two.
  if (config.gate_method == GateMethod::kGroupLimitedGreedy) group_score = GroupScore::kMax;
  if (config.gate_method == GateMethod::kNoAuxTc) group_score = GroupScore::kTopTwoSum;
  return {.experts = config.expert_count,
          .top_k = config.experts_per_token,
          .score = config.gate_scoring == GateScoring::kSoftmax ? kernels::GateScore::kSoftmax
                                                                : kernels::GateScore::kSigmoid,
          .group_score = group_score,
          .groups = config.group_count,
          .kept_groups = config.kept_group_count,
          .normalise = config.normalise_weights,
          .scaling = static_cast<float>(config.routed_scaling_factor)};
}

}  // namespace

absl::StatusOr<WeightPlan> PlanWeights(const ModelConfig& config, const Checkpoint& checkpoint,
                                       const LoadOptions& options) {
  const WeightBinder binder(config, checkpoint);
  WeightPlan plan;
  // The plan mirrors ModelLoader weight by weight: what is loaded and not counted would be found by
  // the kernel's memory killer.
  const auto count = [&](const BoundWeight& weight, kernels::Quantization quantization) {
    plan.source_bytes += weight.source_bytes();
    plan.largest_tensor_bytes = std::max(plan.largest_tensor_bytes, weight.source_bytes());
    const kernels::SourceMatrix& source = weight.source;
    // Vectors are kept in FP32.
    plan.packed_bytes += source.rows == 1 ? 4 * source.cols : PackedBytes(source, quantization);
  };
  ASSIGN_OR_RETURN(const BoundEnds ends, binder.BindEnds());
  const DType embedding_type = ends.embedding.source.dtype;
  plan.embedding_bytes =
      int64_t{config.vocab_size} * config.hidden_size * (embedding_type == DType::kBF16 ? 2 : 4);
  plan.source_bytes += ends.embedding.source_bytes();
  plan.largest_tensor_bytes = ends.embedding.source_bytes();
  count(ends.final_norm, options.quantization);
  count(ends.head, options.quantization);
  for (int layer = 0; layer < config.layer_count; ++layer) {
    ASSIGN_OR_RETURN(const BoundLayer bound,
                     binder.BindLayer(layer, WantedExperts(config, options, layer)));
    for (const BoundWeight* weight : bound.all()) {
      // --quantization never touches these (docs/numerics.md).
      const bool plain = weight == &bound.router || weight == &bound.kv_b;
      count(*weight, plain ? kernels::Quantization::kNone : options.quantization);
    }
    plan.packed_bytes += SplitKvBytes(config, options.prompt_attention);
  }
  return plan;
}

// Packs layer after layer, and lets go of what was read.
class ModelLoader {
 public:
  ModelLoader(const ModelConfig& config, const Checkpoint& checkpoint, kernels::Backend& backend,
              const LoadOptions& options)
      : binder_(config, checkpoint), backend_(backend), options_(options), model_(new Model()) {
    CHECK_EQ(static_cast<int>(config.sparse_layers.size()), config.layer_count);
    model_->config_ = config;
    model_->kv_type_ = backend.kv_type();
    model_->rope_ = MakeRope(config);
  }

  absl::StatusOr<std::unique_ptr<Model>> Load() {
    // Everything is found before anything is packed.
    ASSIGN_OR_RETURN(const BoundEnds ends, binder_.BindEnds());
    // A missing tensor is found in milliseconds, not after minutes of packing.
    std::vector<BoundLayer> layers;
    const ModelConfig& config = model_->config_;
    for (int layer = 0; layer < config.layer_count; ++layer) {
      ASSIGN_OR_RETURN(BoundLayer bound,
                       binder_.BindLayer(layer, WantedExperts(config, options_, layer)));
      for (const BoundWeight* weight : bound.all()) RETURN_IF_ERROR(CheckScales(*weight));
      layers.push_back(std::move(bound));
    }
    LoadEnds(ends);
    for (const BoundLayer& bound : layers) model_->layers_.push_back(LoadLayer(bound));
    return std::move(model_);
  }

 private:
  void LoadEnds(const BoundEnds& ends) {
    LoadEmbedding(ends.embedding);
    model_->final_norm_ = LoadVector(ends.final_norm);
    Done({&ends.final_norm});
    model_->head_ = backend_.LoadMatrix(ends.head.source);
    Done({&ends.head});
  }

  void LoadEmbedding(const BoundWeight& weight) {
    const kernels::SourceMatrix& source = weight.source;
    // Rows of the embedding are copied and not multiplied: other types are widened once.
    const bool keep = source.dtype == DType::kBF16 || source.dtype == DType::kF32;
    kernels::SourceMatrix& table = model_->embedding_;
    table = {.dtype = keep ? source.dtype : DType::kF32, .rows = source.rows, .cols = source.cols};
    const int64_t bytes = source.rows * source.cols * kernels::DTypeBytes(table.dtype);
    model_->embedding_memory_ = backend_.Allocate(bytes, kernels::MemoryUse::kOperations);
    std::byte* to = model_->embedding_memory_->data();
    table.data = to;
    if (keep) {
      backend_.Write(to, source.data, bytes);
    } else {
      // Row by row, so that the widened table never exists twice.
      std::vector<float> values(source.cols);
      const int64_t row_bytes = source.cols * int64_t{sizeof(float)};
      for (int64_t row = 0; row < source.rows; ++row) {
        kernels::ReadSource(source, row, 0, source.cols, values.data());
        backend_.Write(to + row * row_bytes, values.data(), row_bytes);
      }
    }
    Done({&weight});
  }

  LoadedVector LoadVector(const BoundWeight& weight) {
    const std::vector<float> values = ReadVector(weight);
    const auto count = static_cast<int64_t>(values.size());
    const int64_t bytes = count * int64_t{sizeof(float)};
    LoadedVector vector{.memory = backend_.Allocate(bytes, kernels::MemoryUse::kOperations)};
    backend_.Write(vector.memory->data(), values.data(), bytes);
    vector.tensor = {DType::kF32, 1, count, vector.memory->data()};
    return vector;
  }

  Layer LoadLayer(const BoundLayer& bound) {
    Layer layer;
    const std::vector<float> input_norm = ReadVector(bound.input_norm);
    const std::vector<float> q_a_norm = ReadVector(bound.q_a_norm);
    const std::vector<float> kv_a_norm = ReadVector(bound.kv_a_norm);
    layer.mlp_norm = LoadVector(bound.mlp_norm);
    layer.attention = backend_.LoadAttention({.shape = AttentionShapeOf(model_->config_),
                                              .input_norm = input_norm,
                                              .q_a = bound.q_a.source,
                                              .q_a_norm = q_a_norm,
                                              .q = bound.q.source,
                                              .kv_a = bound.kv_a.source,
                                              .kv_a_norm = kv_a_norm,
                                              .kv_b = bound.kv_b.source,
                                              .o = bound.o.source});
    // Each source is released as soon as its packed copy exists: a rank needs the memory of what it
    // holds and of one tensor, never of the checkpoint.
    Done({&bound.input_norm, &bound.q_a, &bound.q_a_norm, &bound.q, &bound.kv_a, &bound.kv_a_norm,
          &bound.kv_b, &bound.o, &bound.mlp_norm});
    layer.dense = LoadMlp(bound.dense);
    if (bound.router.name.empty()) return layer;
    layer.gate = backend_.LoadGate(GateShapeOf(model_->config_), bound.router.source,
                                   ReadVector(bound.correction_bias));
    Done({&bound.router, &bound.correction_bias});
    layer.shared = LoadMlp(bound.shared);
    for (const std::optional<BoundMlp>& expert : bound.experts) {
      layer.experts.push_back(LoadMlp(expert));
    }
    return layer;
  }

  std::unique_ptr<kernels::Mlp> LoadMlp(const std::optional<BoundMlp>& mlp) {
    if (!mlp) return nullptr;
    auto loaded = backend_.LoadMlp(mlp->gate.source, mlp->up.source, mlp->down.source);
    Done({&mlp->gate, &mlp->up, &mlp->down});
    return loaded;
  }

  void Done(std::initializer_list<const BoundWeight*> weights) {
    for (const BoundWeight* weight : weights) {
      ReleaseSource(*weight);
      // An optional weight that is absent has no name.
      if (!weight->name.empty()) bytes_ += weight->source_bytes();
    }
    if (options_.progress) options_.progress(bytes_);
  }

  WeightBinder binder_;
  kernels::Backend& backend_;
  const LoadOptions& options_;
  std::unique_ptr<Model> model_;
  int64_t bytes_ = 0;
};

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const ModelConfig& config,
                                                   const Checkpoint& checkpoint,
                                                   kernels::Backend& backend,
                                                   const LoadOptions& options) {
  return ModelLoader(config, checkpoint, backend, options).Load();
}

}  // namespace epic::model
