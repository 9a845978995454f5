// IdleStep: a step without rows. A rank whose exchange runs in lock-step with others takes part in
// their step though it has nothing to compute: the same exchanges in the same order, all empty.
//
//   IdleStep step(config, exchange);
//   while (true) {
//     ASSIGN_OR_RETURN(Step::Progress progress, step.Advance());   // as Step::Advance
//     if (progress == Step::Progress::kDone) break;
//   }
#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/expert_exchange.h"
#include "model/step.h"

namespace epic::model {

class IdleStep {
 public:
  // Both outlive the step.
  IdleStep(const ModelConfig& config, ExpertExchange& exchange)
      : config_(config), exchange_(exchange) {}

  absl::StatusOr<Step::Progress> Advance();

 private:
  const ModelConfig& config_;
  ExpertExchange& exchange_;
  int layer_ = 0;
  std::optional<ExpertExchange::Ticket> ticket_;
};

}  // namespace epic::model
