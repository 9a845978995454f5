#include "worker/testing/even_map.h"

#include <algorithm>

namespace epic::worker {

cluster::ExpertMap EvenMap(const model::ModelConfig& config, int rank_count) {
  cluster::ExpertMap map{.version = {.term = 0, .number = 1}};
  for (int rank = 0; rank < rank_count; ++rank) {
    map.ranks.push_back({{.rank = rank}, /*attention=*/true, /*experts=*/true});
  }
  map.replicas.resize(config.layer_count);
  for (int layer = 0; layer < config.layer_count; ++layer) {
    if (!config.is_sparse(layer)) continue;
    for (int64_t expert = 0; expert < config.expert_count; ++expert) {
      map.replicas[layer].push_back({static_cast<int>(expert * rank_count / config.expert_count)});
    }
  }
  return map;
}

ExpertOrder OrderOf(const cluster::ExpertMap& map, int rank) {
  ExpertOrder order;
  for (int layer = 0; layer < static_cast<int>(map.replicas.size()); ++layer) {
    const auto& of_layer = map.replicas[layer];
    for (int expert = 0; expert < static_cast<int>(of_layer.size()); ++expert) {
      if (!std::ranges::binary_search(of_layer[expert], rank)) continue;
      order.wanted[{.layer = layer, .expert = expert}] = 0;
    }
  }
  return order;
}

}  // namespace epic::worker
