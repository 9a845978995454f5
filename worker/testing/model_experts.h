// ModelExperts: the experts that a Model was loaded with (LoadOptions::wants_expert), as an
// ExpertSet.
#pragma once

#include <vector>

#include "model/model.h"
#include "worker/experts/expert_set.h"

namespace epic::worker {

class ModelExperts : public ExpertSet {
 public:
  // Both outlive the set.
  ModelExperts(const model::Model& model, kernels::Backend& backend);

  bool Holds(int layer, int expert) const override { return experts_[layer][expert] != nullptr; }
  void Compute(int layer, kernels::Tensor rows, std::span<const kernels::ExpertRow> pairs,
               kernels::Tensor out) override {
    backend_.Experts(experts_[layer], rows, pairs, out);
  }

 private:
  kernels::Backend& backend_;
  std::vector<std::vector<const kernels::Mlp*>> experts_;  // [layer][expert]
};

}  // namespace epic::worker
