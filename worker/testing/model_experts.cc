#include "worker/testing/model_experts.h"

namespace epic::worker {

ModelExperts::ModelExperts(const model::Model& model, kernels::Backend& backend)
    : backend_(backend) {
  for (const model::Layer& layer : model.layers()) {
    std::vector<const kernels::Mlp*>& experts = experts_.emplace_back();
    for (const auto& expert : layer.experts) experts.push_back(expert.get());
  }
}

}  // namespace epic::worker
