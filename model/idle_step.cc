#include "model/idle_step.h"

#include "base/status.h"

namespace epic::model {

using kernels::DType;

absl::StatusOr<Step::Progress> IdleStep::Advance() {
  // Only layers with experts exchange; dense ones have no operation that others wait for.
  while (layer_ < config_.layer_count && !config_.is_sparse(layer_)) ++layer_;
  if (layer_ == config_.layer_count) return Step::Progress::kDone;
  const int64_t hidden = config_.hidden_size;
  if (!ticket_) {
    // No rows, but the same widths as everybody: the exchange checks them on all ranks.
    ticket_ =
        exchange_.Begin({.layer = layer_,
                         .rows = {.dtype = DType::kBF16, .cols = hidden},
                         .experts = {.dtype = DType::kI32, .cols = config_.experts_per_token}});
    return Step::Progress::kRunning;
  }
  if (!exchange_.Ready(*ticket_)) return Step::Progress::kWaiting;
  RETURN_IF_ERROR(exchange_.Finish(*ticket_, {.dtype = DType::kBF16, .cols = hidden}));
  ticket_.reset();
  ++layer_;
  return Step::Progress::kRunning;
}

}  // namespace epic::model
