#include "model/local_exchange.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace epic::model {

LocalExchange::LocalExchange(const Model& model, kernels::Backend& backend) : backend_(backend) {
  for (const Layer& layer : model.layers()) {
    std::vector<const kernels::Mlp*>& experts = experts_.emplace_back();
    for (const auto& expert : layer.experts) experts.push_back(expert.get());
  }
}

ExpertExchange::Ticket LocalExchange::Begin(const ExpertDispatch& dispatch) {
  const Ticket ticket = open_[0].used ? 1 : 0;
  CHECK(!open_[ticket].used) << "two tickets are open";
  open_[ticket] = {.used = true, .dispatch = dispatch};
  return ticket;
}

absl::Status LocalExchange::Finish(Ticket ticket, kernels::Tensor out) {
  CHECK(open_[ticket].used) << "ticket " << ticket;
  open_[ticket].used = false;
  const ExpertDispatch& dispatch = open_[ticket].dispatch;
  const std::vector<const kernels::Mlp*>& experts = experts_[dispatch.layer];
  pairs_.clear();
  for (int64_t row = 0; row < dispatch.experts.rows; ++row) {
    for (int64_t j = 0; j < dispatch.experts.cols; ++j) {
      const int32_t expert = dispatch.experts.Row<int32_t>(row)[j];
      if (experts[expert] == nullptr) {
        return absl::FailedPreconditionError(absl::StrCat("layer ", dispatch.layer, ": expert ",
                                                          expert, " is not loaded on this rank"));
      }
      pairs_.push_back({static_cast<int32_t>(row), expert});
    }
  }
  backend_.Experts(experts, dispatch.rows, pairs_, out);
  return absl::OkStatus();
}

}  // namespace epic::model
