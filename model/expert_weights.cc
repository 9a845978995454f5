// Experts one by one (model.h), for ranks that hold some of them.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/status.h"
#include "kernels/number.h"
#include "model/model.h"
#include "model/weights.h"

namespace epic::model {
namespace {

// A row whose every value differs from its neighbours', so that a panel in a wrong place shows.
void FillProbe(kernels::Tensor row) {
  for (int64_t i = 0; i < row.cols; ++i) {
    // 37 is coprime to 101, so two columns closer than 101 have different values; sixty-fourths of
    // these numbers are exact in BF16.
    const auto value = static_cast<float>((i * 37 + 11) % 101 - 50);
    row.As<kernels::BF16>()[i] = kernels::ToBF16(value / 64);
  }
}

void HashBytes(XXH3_state_t& state, const void* data, int64_t bytes) {
  XXH3_64bits_update(&state, data, static_cast<size_t>(bytes));
}

void HashSource(XXH3_state_t& state, const BoundWeight& weight) {
  const kernels::SourceMatrix& source = weight.source;
  // As stored, before packing: the same bytes on every device and in every numeric family.
  HashBytes(state, source.data, source.data_bytes());
  if (source.scales != nullptr) HashBytes(state, source.scales, source.scale_bytes());
}

void HashProbe(XXH3_state_t& state, const kernels::Mlp& mlp, kernels::Backend& backend) {
  const int64_t hidden = mlp.hidden;
  const auto memory = backend.Allocate(2 * hidden * 2, kernels::MemoryUse::kHost);
  // One row in, one row out.
  const kernels::Tensor row{kernels::DType::kBF16, 1, hidden, memory->data()};
  const kernels::Tensor out{kernels::DType::kBF16, 1, hidden, memory->data() + hidden * 2};
  FillProbe(row);
  // The probe goes the way of real rows, through the packed weights.
  const kernels::Mlp* experts[] = {&mlp};
  const kernels::ExpertRow pairs[] = {{.row = 0, .expert = 0}};
  backend.Experts(experts, row, pairs, out);
  HashBytes(state, out.data, hidden * 2);
}

}  // namespace

absl::StatusOr<ExpertPlan> PlanExperts(const ModelConfig& config, const Checkpoint& checkpoint,
                                       kernels::Quantization quantization) {
  const WeightBinder binder(config, checkpoint);
  ExpertPlan plan;
  for (int layer = 0; layer < config.layer_count; ++layer) {
    if (!config.is_sparse(layer)) continue;
    for (int expert = 0; expert < config.expert_count; ++expert) {
      ASSIGN_OR_RETURN(const BoundMlp bound, binder.BindExpert(layer, expert));
      ExpertPlan one;
      for (const BoundWeight* weight : {&bound.gate, &bound.up, &bound.down}) {
        one.source_bytes += weight->source_bytes();
        one.packed_bytes += PackedBytes(weight->source, quantization);
        one.largest_tensor_bytes = std::max(one.largest_tensor_bytes, weight->source_bytes());
      }
      // A slot must hold any expert, so each size is the largest of all.
      plan.source_bytes = std::max(plan.source_bytes, one.source_bytes);
      plan.packed_bytes = std::max(plan.packed_bytes, one.packed_bytes);
      plan.largest_tensor_bytes = std::max(plan.largest_tensor_bytes, one.largest_tensor_bytes);
    }
  }
  return plan;
}

absl::StatusOr<LoadedExpert> LoadExpert(const ModelConfig& config, const Checkpoint& checkpoint,
                                        kernels::Backend& backend, int layer, int expert) {
  CHECK(layer >= 0 && layer < config.layer_count && config.is_sparse(layer)) << " layer " << layer;
  CHECK(expert >= 0 && expert < config.expert_count) << " expert " << expert;
  const WeightBinder binder(config, checkpoint);
  ASSIGN_OR_RETURN(const BoundMlp bound, binder.BindExpert(layer, expert));
  LoadedExpert loaded;
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  for (const BoundWeight* weight : {&bound.gate, &bound.up, &bound.down}) {
    // Before packing: a scale of NaN would reach rows of every request.
    RETURN_IF_ERROR(CheckScales(*weight));
    HashSource(state, *weight);
    loaded.source_bytes += weight->source_bytes();
  }
  loaded.mlp = backend.LoadMlp(bound.gate.source, bound.up.source, bound.down.source);
  // The packed copy is whole now; the page cache may let go of the file's pages.
  for (const BoundWeight* weight : {&bound.gate, &bound.up, &bound.down}) ReleaseSource(*weight);
  HashProbe(state, *loaded.mlp, backend);
  loaded.proof = XXH3_64bits_digest(&state);
  return loaded;
}

}  // namespace epic::model
