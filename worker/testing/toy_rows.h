// Rows for ToyExperts, with the answers that they must get.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/sim_loop.h"
#include "model/expert_exchange.h"
#include "worker/exchange/dispatch_frame.h"
#include "worker/testing/toy_experts.h"

namespace epic::worker {

// A dispatch of `count` random rows, each to random experts.
class ToyRows {
 public:
  ToyRows(const ExchangeShape& shape, int layer, int count, uint64_t seed)
      : shape_(shape), layer_(layer), count_(count) {
    SeededRandom random(seed);
    for (int row = 0; row < count; ++row) {
      for (int i = 0; i < shape.hidden; ++i) {
        rows_.push_back(static_cast<uint16_t>(random.Next()));
      }
      std::vector<int32_t> ids(shape.expert_count);
      for (int expert = 0; expert < shape.expert_count; ++expert) ids[expert] = expert;
      for (int j = 0; j < shape.experts_per_token; ++j) {
        std::swap(ids[j], ids[j + random.Next() % (shape.expert_count - j)]);
      }
      std::sort(ids.begin(), ids.begin() + shape.experts_per_token);
      experts_.insert(experts_.end(), ids.begin(), ids.begin() + shape.experts_per_token);
    }
    out_.resize(experts_.size() * shape.hidden);
  }

  void SetExperts(std::vector<int32_t> experts) { experts_ = std::move(experts); }
  model::ExpertDispatch dispatch() {
    const int64_t pairs = int64_t{count_} * shape_.experts_per_token;
    return {.layer = layer_,
            .rows = {kernels::DType::kBF16, count_, shape_.hidden, rows_.data()},
            .experts = {kernels::DType::kI32, count_, shape_.experts_per_token, experts_.data()},
            .out = {kernels::DType::kBF16, pairs, shape_.hidden, out_.data()}};
  }
  // Whether every answer is in `out`, each in its place.
  bool Answered() const {
    std::vector<uint16_t> expected(out_.size());
    const auto hidden = static_cast<size_t>(shape_.hidden);
    for (size_t pair = 0; pair < experts_.size(); ++pair) {
      const size_t row = pair / static_cast<size_t>(shape_.experts_per_token);
      ToyExperts::Answer(layer_, experts_[pair], std::span(rows_).subspan(row * hidden, hidden),
                         std::span(expected).subspan(pair * hidden, hidden));
    }
    return out_ == expected;
  }

 private:
  const ExchangeShape shape_;
  const int layer_, count_;
  std::vector<uint16_t> rows_, out_;
  std::vector<int32_t> experts_;
};

}  // namespace epic::worker
