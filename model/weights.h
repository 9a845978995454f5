// Weights of a model by name: which tensors the graph wants, with their shapes. Binding reads no
// tensor's data; model.h packs what is bound here.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/quantize.h"
#include "kernels/tensor.h"
#include "model/checkpoint.h"
#include "model/config.h"

namespace epic::model {

// A tensor in the mapped checkpoint. An empty name: the model has none.
struct BoundWeight {
  std::string name;
  kernels::SourceMatrix source;
  std::string scales_name;  // of the tensor of its scales, if it has one

  int64_t source_bytes() const;
};

struct BoundMlp {
  BoundWeight gate, up, down;
};

struct BoundLayer {
  BoundWeight input_norm, q_a, q_a_norm, q, kv_a, kv_a_norm, kv_b, o, mlp_norm;
  std::optional<BoundMlp> dense, shared;
  BoundWeight router, correction_bias;
  std::vector<std::optional<BoundMlp>> experts;  // [expert_count] of a layer with experts

  // Every bound tensor, in no order that matters.
  std::vector<const BoundWeight*> all() const;
};

struct BoundEnds {
  BoundWeight embedding, final_norm, head;  // head: the embedding again if they are tied
};

// Looks tensors up and checks type and shape. InvalidArgument naming tensor, found and expected.
class WeightBinder {
 public:
  // Both outlive the binder.
  WeightBinder(const ModelConfig& config, const Checkpoint& checkpoint)
      : config_(config), checkpoint_(checkpoint) {}

  absl::StatusOr<BoundEnds> BindEnds() const;
  // `wanted` [expert_count]; empty: all.
  absl::StatusOr<BoundLayer> BindLayer(int layer, const std::vector<bool>& wanted) const;
  // One expert of a layer with experts.
  absl::StatusOr<BoundMlp> BindExpert(int layer, int expert) const;

 private:
  absl::Status BindAttention(const std::string& prefix, BoundLayer& bound) const;
  absl::Status BindExperts(const std::string& prefix, const std::vector<bool>& wanted,
                           BoundLayer& bound) const;
  absl::StatusOr<BoundMlp> Mlp(const std::string& prefix, int64_t intermediate) const;
  absl::StatusOr<BoundMlp> Expert(const std::string& prefix, int expert) const;
  // A linear layer's weight: BF16, F16, F32, or FP8, INT8 or packed INT4 with its scales.
  absl::StatusOr<BoundWeight> Linear(const std::string& name, int64_t rows, int64_t cols) const;
  // As Linear but never quantised.
  absl::StatusOr<BoundWeight> Plain(const std::string& name, int64_t rows, int64_t cols) const;
  // Plain [count].
  absl::StatusOr<BoundWeight> Vector(const std::string& name, int64_t count) const;
  absl::StatusOr<BoundWeight> Bind(const std::string& name, const std::vector<int64_t>& shape,
                                   bool may_be_quantised) const;
  absl::Status BindScales(BoundWeight& weight) const;
  absl::Status FindScales(BoundWeight& weight, std::string name,
                          const std::vector<std::string>& dtypes) const;
  // `name`_packed with `name`_scale and `name`_shape.
  absl::StatusOr<BoundWeight> PackedInt4(const std::string& name, int64_t rows, int64_t cols) const;
  absl::Status CheckPackedShape(const std::string& name, int64_t rows, int64_t cols) const;

  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
};

// What a matrix takes once a backend has packed it, rounded up.
int64_t PackedBytes(const kernels::SourceMatrix& source,
                    kernels::Quantization quantization = kernels::Quantization::kNone);
// Reading is over: the file's pages go back to the system; a later read maps them again.
void ReleaseSource(const BoundWeight& weight);
// Reads a bound vector as FP32.
std::vector<float> ReadVector(const BoundWeight& weight);
// InvalidArgument naming the first scale that is not a positive finite number (or zero, of
// integers).
absl::Status CheckScales(const BoundWeight& weight);

}  // namespace epic::model
