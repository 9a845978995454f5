#include "worker/service/placement_messages.h"

#include "base/status.h"

namespace epic::worker {

absl::StatusOr<ExpertOrder> OrderFrom(const v1::PlaceExperts& message) {
  ExpertOrder order{.order = message.order()};
  for (const v1::LayerExperts& layer : message.layers()) {
    ASSIGN_OR_RETURN(const cluster::WeightsId weights, cluster::WeightsIdFrom(layer.weights_id()));
    // Hashes come for all experts of a layer or for none.
    const bool proved = layer.hashes_size() == layer.experts_size();
    for (int i = 0; i < layer.experts_size(); ++i) {
      order.wanted[{layer.layer(), layer.experts(i), weights}] = proved ? layer.hashes(i) : 0;
    }
  }
  return order;
}

v1::ControlMessage MessageFrom(const ExpertOutcome& outcome) {
  v1::ControlMessage message;
  if (!outcome.status.ok()) {
    message.mutable_experts_failed()->set_order(outcome.order);
    message.mutable_experts_failed()->set_message(std::string(outcome.status.message()));
    return message;
  }
  v1::ExpertsReady& ready = *message.mutable_experts_ready();
  ready.set_order(outcome.order);
  ready.set_loaded_bytes(outcome.loaded_bytes);
  ready.set_load_seconds(absl::ToDoubleSeconds(outcome.duration));
  *ready.mutable_layers() = LayersFrom(outcome.proofs);
  return message;
}

google::protobuf::RepeatedPtrField<v1::LayerExperts> LayersFrom(const ExpertProofs& proofs) {
  google::protobuf::RepeatedPtrField<v1::LayerExperts> layers;
  v1::LayerExperts* layer = nullptr;
  // Proofs ascend by layer, so each layer is begun once.
  for (const auto& [name, proof] : proofs) {
    if (layer == nullptr || layer->layer() != name.layer) {
      layer = layers.Add();
      layer->set_layer(name.layer);
      layer->set_weights_id(NumberOf(name.weights));
    }
    layer->add_experts(name.expert);
    layer->add_hashes(proof);
  }
  return layers;
}

}  // namespace epic::worker
