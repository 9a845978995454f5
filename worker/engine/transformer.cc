#include "worker/engine/transformer.h"

namespace epic::worker {

absl::StatusOr<TokenModel::Progress> Transformer::Advance() {
  const absl::StatusOr<model::Step::Progress> progress = step_->Advance();
  if (!progress.ok()) return progress.status();
  switch (*progress) {
    case model::Step::Progress::kRunning:
      return Progress::kRunning;
    case model::Step::Progress::kWaiting:
      return Progress::kWaiting;
    case model::Step::Progress::kDone:
      break;
  }
  return Progress::kDone;
}

StepPlace Transformer::place() const {
  if (!step_) return {};
  return {.stage = step_->stage_name(), .layer = step_->layer()};
}

}  // namespace epic::worker
