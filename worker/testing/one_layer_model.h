// OneLayerModel: a TokenModel of one layer, whose rows go through a real exchange, for tests of
// what drives a rank. Every row asks for experts 0 and 1; the next token is always 0.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/expert_exchange.h"
#include "worker/engine/token_model.h"
#include "worker/exchange/dispatch_frame.h"

namespace epic::worker {

class OneLayerModel : public TokenModel {
 public:
  static constexpr ExchangeShape kShape{
      .layer_count = 1, .expert_count = 2, .experts_per_token = 2, .hidden = 4};

  explicit OneLayerModel(model::ExpertExchange& exchange) : exchange_(exchange) {}

  int vocab_size() const override { return 3; }
  void Begin(const kernels::StepPlan& plan) override {
    rows_ = plan.rows();
    sent_ = false;
    logits_.assign(plan.logit_rows.size() * 3, 0.0f);
  }
  absl::StatusOr<Progress> Advance() override {
    if (!sent_) {
      Send();
      return Progress::kRunning;
    }
    if (!exchange_.Ready(ticket_)) return Progress::kWaiting;
    if (absl::Status status = exchange_.Finish(ticket_, Out()); !status.ok()) return status;
    return Progress::kDone;
  }
  std::span<float> Logits(int index) override {
    return std::span(logits_).subspan(static_cast<size_t>(index) * 3, 3);
  }
  bool Fault(int) const override { return false; }

 private:
  void Send() {
    hidden_.assign(static_cast<size_t>(rows_) * kShape.hidden, 7);
    out_.assign(hidden_.size() * 2, 0);
    experts_.clear();
    for (int row = 0; row < rows_; ++row) experts_.insert(experts_.end(), {0, 1});
    ticket_ = exchange_.Begin(
        {.layer = 0,
         .rows = {kernels::DType::kBF16, rows_, kShape.hidden, hidden_.data()},
         .experts = {kernels::DType::kI32, rows_, kShape.experts_per_token, experts_.data()},
         .out = Out()});
    sent_ = true;
  }
  kernels::Tensor Out() {
    return {kernels::DType::kBF16, int64_t{rows_} * 2, kShape.hidden, out_.data()};
  }

  model::ExpertExchange& exchange_;
  int rows_ = 0;
  bool sent_ = false;
  model::ExpertExchange::Ticket ticket_ = 0;
  std::vector<uint16_t> hidden_, out_;
  std::vector<int32_t> experts_;
  std::vector<float> logits_;
};

}  // namespace epic::worker
