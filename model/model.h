// Model: a checkpoint's weights, bound by name and packed by a backend. Immutable once loaded, so
// any number of threads may read it.
//
//   ASSIGN_OR_RETURN(WeightPlan plan, PlanWeights(config, *checkpoint, options));
//   ASSIGN_OR_RETURN(std::unique_ptr<Model> model,
//                    Model::Load(config, *checkpoint, backend, options));
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/quantize.h"
#include "model/checkpoint.h"
#include "model/config.h"

namespace epic::model {

struct LoadOptions {
  // Whether this expert of this layer is wanted; empty: all are.
  std::function<bool(int layer, int expert)> wants_expert;
  // Called with the bytes of the checkpoint read so far, of WeightPlan::source_bytes.
  std::function<void(int64_t bytes)> progress;
  // What the backend does to weights as it loads them: for PlanWeights.
  kernels::Quantization quantization = kernels::Quantization::kNone;
  kernels::PromptAttention prompt_attention = kernels::PromptAttention::kAbsorbed;
};

// What loading takes, known from the headers alone.
struct WeightPlan {
  int64_t source_bytes = 0;  // of the wanted tensors
  int64_t packed_bytes = 0;  // of the packed weights, rounded up; the embedding apart
  int64_t embedding_bytes = 0;
  int64_t largest_tensor_bytes = 0;  // mapped while it is packed
};

// Checks that every wanted tensor is there with the right shape and a type that is served;
// InvalidArgument naming tensor, what it is and what is expected.
absl::StatusOr<WeightPlan> PlanWeights(const ModelConfig& config, const Checkpoint& checkpoint,
                                       const LoadOptions& options);

// What one expert takes; all experts of a model have the same shape. Zeroes for a model without
// experts. As PlanWeights, for every expert.
struct ExpertPlan {
  int64_t source_bytes = 0;
  int64_t packed_bytes = 0;
  int64_t largest_tensor_bytes = 0;
};
absl::StatusOr<ExpertPlan> PlanExperts(
    const ModelConfig& config, const Checkpoint& checkpoint,
    kernels::Quantization quantization = kernels::Quantization::kNone);

// An expert of its own, for ranks that hold some.
struct LoadedExpert {
  std::unique_ptr<kernels::Mlp> mlp;
  // XXH3-64 of its bytes in the checkpoint and of what the packed expert makes of a fixed row:
  // equal on all ranks of a numeric profile, or one of them holds something else.
  uint64_t proof = 0;
  int64_t source_bytes = 0;
};
// Packs it, touched in full. InvalidArgument as Model::Load. `layer` has experts. Not thread-safe:
// it computes with the backend.
absl::StatusOr<LoadedExpert> LoadExpert(const ModelConfig& config, const Checkpoint& checkpoint,
                                        kernels::Backend& backend, int layer, int expert);

// A vector in backend memory: F32 [1, n].
struct LoadedVector {
  std::unique_ptr<kernels::Memory> memory;
  kernels::Tensor tensor;
};

struct Layer {
  std::unique_ptr<kernels::Attention> attention;
  LoadedVector mlp_norm;                // post_attention_layernorm
  std::unique_ptr<kernels::Mlp> dense;  // of a dense layer
  // Of a layer with experts.
  std::unique_ptr<kernels::Gate> gate;
  std::unique_ptr<kernels::Mlp> shared;                // null: none
  std::vector<std::unique_ptr<kernels::Mlp>> experts;  // null: not wanted here
};

class Model {
 public:
  // As PlanWeights; also InvalidArgument for a block scale that is not a positive finite number.
  // The checkpoint may be closed afterwards; the backend outlives the model.
  static absl::StatusOr<std::unique_ptr<Model>> Load(const ModelConfig& config,
                                                     const Checkpoint& checkpoint,
                                                     kernels::Backend& backend,
                                                     const LoadOptions& options = {});

  const ModelConfig& config() const { return config_; }
  const kernels::Rope& rope() const { return rope_; }
  const kernels::SourceMatrix& embedding() const { return embedding_; }
  const std::vector<Layer>& layers() const { return layers_; }
  const kernels::Tensor& final_norm() const { return final_norm_.tensor; }
  const kernels::Matrix& head() const { return *head_; }
  // Of the backend that packed it.
  kernels::KvLayout kv_layout() const {
    return {config_.kv_lora_rank, config_.qk_rope_head_dim, kv_type_};
  }

 private:
  friend class ModelLoader;
  Model() = default;

  ModelConfig config_;
  kernels::KvType kv_type_ = kernels::KvType::kBF16;
  kernels::Rope rope_;
  std::unique_ptr<kernels::Memory> embedding_memory_;
  kernels::SourceMatrix embedding_;
  std::vector<Layer> layers_;
  LoadedVector final_norm_;
  std::unique_ptr<kernels::Matrix> head_;
};

}  // namespace epic::model
