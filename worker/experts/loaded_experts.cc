#include "worker/experts/loaded_experts.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/failpoint.h"
#include "base/status.h"

namespace epic::worker {

LoadedExperts::LoadedExperts(const Clock& clock, const model::ModelConfig& config,
                             const model::Checkpoint& checkpoint, kernels::Backend& backend,
                             int slots, int64_t expert_bytes)
    : clock_(clock),
      config_(config),
      checkpoint_(checkpoint),
      backend_(backend),
      slots_(slots),
      expert_bytes_(expert_bytes),
      by_layer_(config.layer_count) {
  CHECK_GE(slots, 0);
  for (int layer = 0; layer < config.layer_count; ++layer) {
    // A dense layer stays empty, so it holds no expert of any number.
    if (config.is_sparse(layer)) by_layer_[layer].resize(config.expert_count);
  }
}

void LoadedExperts::Order(ExpertOrder order) {
  order_ = std::move(order);
  began_ = clock_.Now();
  order_bytes_ = 0;
  order_total_bytes_ = 0;
  missing_.clear();
  // Advance tells why an order cannot be met. All that is held stays, since nothing of the order is
  // done.
  if (!CheckOrder().ok()) return;
  for (auto held = held_.begin(); held != held_.end();) {
    const auto wanted = order_->wanted.find(held->first);
    // Bytes that differ from another holder's are read again: the disk may have been wrong once.
    if (wanted != order_->wanted.end() &&
        (wanted->second == 0 || wanted->second == held->second.proof)) {
      ++held;
      continue;
    }
    // First out of sight, then gone: rows that ask for it from now on are refused.
    by_layer_[held->first.layer][held->first.expert] = nullptr;
    held = held_.erase(held);
  }
  for (const auto& [name, proof] : order_->wanted) {
    if (!held_.contains(name)) missing_.push_back(name);
  }
  order_total_bytes_ = static_cast<int64_t>(missing_.size()) * expert_bytes_;
}

// Orders come from another process: each name is held against the model before it is an index.
absl::Status LoadedExperts::CheckOrder() const {
  if (static_cast<int>(order_->wanted.size()) > slots_) {
    return absl::ResourceExhaustedError(absl::StrCat("the order wants ", order_->wanted.size(),
                                                     " experts; this rank has ", slots_, " slots"));
  }
  for (const auto& [name, proof] : order_->wanted) {
    const bool known = name.layer >= 0 && name.layer < config_.layer_count && name.expert >= 0 &&
                       name.expert < static_cast<int>(by_layer_[name.layer].size());
    if (known) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("the model has no expert ", name.expert, " in layer ", name.layer));
  }
  return absl::OkStatus();
}

std::optional<ExpertOutcome> LoadedExperts::Advance() {
  if (!order_) return std::nullopt;
  if (absl::Status status = CheckOrder(); !status.ok()) return Finish(std::move(status));
  if (!missing_.empty()) {
    if (absl::Status status = LoadOne(); !status.ok()) return Finish(std::move(status));
  }
  if (!missing_.empty()) return std::nullopt;
  return Finish(absl::OkStatus());
}

absl::Status LoadedExperts::LoadOne() {
  const ExpertName name = missing_.front();
  ASSIGN_OR_RETURN(model::LoadedExpert loaded,
                   model::LoadExpert(config_, checkpoint_, backend_, name.layer, name.expert));
  // 0 if no rank has proved the expert yet: this one's proof then becomes the measure (rule 6.2).
  const uint64_t known = order_->wanted.at(name);
  if (known != 0 && known != loaded.proof) {
    return absl::DataLossError(absl::StrCat("expert ", name.expert, " of layer ", name.layer,
                                            " differs from another rank's: its proof is ",
                                            absl::Hex(loaded.proof, absl::kZeroPad16), ", not ",
                                            absl::Hex(known, absl::kZeroPad16)));
  }
  // Proved: from here on it may be asked for. Two ranks that hold it have the same bytes.
  missing_.pop_front();
  order_bytes_ += loaded.source_bytes;
  by_layer_[name.layer][name.expert] = loaded.mlp.get();
  held_[name] = std::move(loaded);
  Pass(Failpoint::kExpertLoaded);
  return absl::OkStatus();
}

ExpertOutcome LoadedExperts::Finish(absl::Status status) {
  ExpertOutcome outcome{.order = order_->order,
                        .status = std::move(status),
                        .loaded_bytes = order_bytes_,
                        .duration = clock_.Now() - began_};
  for (const auto& [name, proof] : order_->wanted) {
    const auto held = held_.find(name);
    if (held != held_.end()) outcome.proofs[name] = held->second.proof;
  }
  // What was loaded stays, whatever became of the order: the next one may want it.
  order_.reset();
  missing_.clear();
  return outcome;
}

std::map<ExpertName, uint64_t> LoadedExperts::held() const {
  std::map<ExpertName, uint64_t> held;
  for (const auto& [name, expert] : held_) held[name] = expert.proof;
  return held;
}

// Layer and expert may be any numbers: they come from frames of other ranks too.
bool LoadedExperts::Holds(int layer, int expert) const {
  if (layer < 0 || layer >= static_cast<int>(by_layer_.size())) return false;
  const auto& of_layer = by_layer_[layer];
  return expert >= 0 && expert < static_cast<int>(of_layer.size()) && of_layer[expert] != nullptr;
}

void LoadedExperts::Compute(int layer, kernels::Tensor rows,
                            std::span<const kernels::ExpertRow> pairs, kernels::Tensor out) {
  // Callers have just asked Holds for each pair, and nothing drops an expert in between.
  CHECK(layer >= 0 && layer < static_cast<int>(by_layer_.size())) << "layer " << layer;
  backend_.Experts(by_layer_[layer], rows, pairs, out);
}

}  // namespace epic::worker
