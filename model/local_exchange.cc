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
  // Two halves of a batch may be under way at once (model/expert_exchange.h).
  const Ticket ticket = open_[0].used ? 1 : 0;
  CHECK(!open_[ticket].used) << "two tickets are open";
  CHECK(dispatch.layer >= 0 && dispatch.layer < static_cast<int>(experts_.size()))
      << " layer " << dispatch.layer;
  CHECK_EQ(dispatch.rows.rows, dispatch.experts.rows);
  open_[ticket] = {.used = true, .dispatch = dispatch};
  return ticket;
}

absl::Status LocalExchange::Finish(Ticket ticket, kernels::Tensor out) {
  CHECK(open_[ticket].used) << "ticket " << ticket;
  // The work is done here and not in Begin, so that the shared expert is computed first, as it is
  // where rows travel.
  open_[ticket].used = false;
  const ExpertDispatch& dispatch = open_[ticket].dispatch;
  const std::vector<const kernels::Mlp*>& experts = experts_[dispatch.layer];
  pairs_.clear();
  for (int64_t row = 0; row < dispatch.experts.rows; ++row) {
    for (int64_t j = 0; j < dispatch.experts.cols; ++j) {
      const int32_t expert = dispatch.experts.Row<int32_t>(row)[j];
      // The gate chooses among all experts; a rank that holds a share needs another exchange.
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
