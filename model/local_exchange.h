// LocalExchange: every expert is here. Nothing travels, so a ticket is ready at once and Finish
// computes.
#pragma once

#include <vector>

#include "kernels/backend.h"
#include "model/expert_exchange.h"
#include "model/model.h"

namespace epic::model {

class LocalExchange : public ExpertExchange {
 public:
  // Both outlive the exchange.
  LocalExchange(const Model& model, kernels::Backend& backend);

  Ticket Begin(const ExpertDispatch& dispatch) override;
  bool Ready(Ticket ticket) override { return true; }
  // FailedPrecondition if a row wants an expert that was not loaded.
  absl::Status Finish(Ticket ticket, kernels::Tensor out) override;

 private:
  struct Open {
    bool used = false;
    ExpertDispatch dispatch;
  };

  kernels::Backend& backend_;
  std::vector<std::vector<const kernels::Mlp*>> experts_;  // [layer][expert]
  Open open_[2];
  std::vector<kernels::ExpertRow> pairs_;
};

}  // namespace epic::model
