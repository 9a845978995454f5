#include "worker/engine/transformer.h"

#include <algorithm>

#include "base/check.h"

namespace epic::worker {
namespace {

// How long rows of other ranks may wait for this rank's experts because of its own attention.
constexpr absl::Duration kAttendTime = absl::Milliseconds(5);

}  // namespace

absl::StatusOr<TokenModel::Progress> Transformer::Advance() {
  CHECK(step_.has_value()) << "Begin comes first";
  const absl::StatusOr<model::Step::Progress> progress =
      clock_ == nullptr ? step_->Advance() : AdvancePaced();
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

// Learns how many pairs fit into kAttendTime from the stages that it runs, for the rate depends on
// the model, the machine and the length of sequences.
absl::StatusOr<model::Step::Progress> Transformer::AdvancePaced() {
  step_->set_attend_pairs_max(attend_pairs_max_);
  const int64_t pairs_before = step_->attended_pairs();
  const absl::Time began = clock_->Now();
  const absl::StatusOr<model::Step::Progress> progress = step_->Advance();
  const auto pairs = static_cast<double>(step_->attended_pairs() - pairs_before);
  const double share = absl::FDivDuration(clock_->Now() - began, kAttendTime);
  // Small stages say little about long ones: only a full one lets the next be longer.
  const bool full = 2 * pairs > static_cast<double>(attend_pairs_max_);
  if (pairs > 0 && (share > 1 || full)) {
    attend_pairs_max_ = static_cast<int64_t>(pairs / std::max(share, 0.5)) + 1;
  }
  return progress;
}

StepPlace Transformer::place() const {
  if (!step_) return {};
  return {.stage = step_->stage_name(), .layer = step_->layer()};
}

}  // namespace epic::worker
