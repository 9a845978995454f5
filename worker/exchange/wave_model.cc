#include "worker/exchange/wave_model.h"

#include <algorithm>

#include "base/check.h"
#include "base/status.h"

namespace epic::worker {

void WaveModel::Begin(const kernels::StepPlan& plan) {
  CHECK(plan_ == nullptr && !stopped_);
  // The step begins after a vote that brings its rows; the vote under way may be without them.
  plan_ = &plan;
  waits_ = false;
}

absl::StatusOr<TokenModel::Progress> WaveModel::Advance() {
  CHECK(plan_ != nullptr);
  // An error is no end of the step: it would be taken for the failure of its sequences.
  if (!status_.ok()) return Progress::kWaiting;
  const absl::StatusOr<Progress> progress = Turn();
  status_ = progress.status();
  if (!progress.ok()) return Progress::kWaiting;
  if (*progress == Progress::kDone) plan_ = nullptr;
  return progress;
}

absl::Status WaveModel::Join() {
  if (!status_.ok() || plan_ != nullptr || stopped_) return status_;
  // All ranks pause alike, so a vote before that would only wait for the others.
  if (stage_ == Stage::kNone && clock_.Now() < next_vote_) return absl::OkStatus();
  return status_ = Turn().status();
}

absl::Duration WaveModel::wait() const {
  if (stage_ == Stage::kNone && plan_ == nullptr) {
    return std::max(absl::ZeroDuration(), next_vote_ - clock_.Now());
  }
  // Others at rest may sleep as long as their pause; in a wave all are on their way.
  const bool at_rest = stage_ == Stage::kVote && rests_ > 0;
  return at_rest && waits_ ? absl::Milliseconds(1) : absl::ZeroDuration();
}

absl::StatusOr<TokenModel::Progress> WaveModel::Turn() {
  Progress progress = Progress::kRunning;
  switch (stage_) {
    case Stage::kNone:
      voted_rows_ = plan_ != nullptr;
      exchange_.StartVote(
          {.rows = voted_rows_ ? plan_->rows() : 0, .ends = ends_ && plan_ == nullptr});
      stage_ = Stage::kVote;
      break;
    case Stage::kVote: {
      ASSIGN_OR_RETURN(const std::optional<Wave> wave, exchange_.Outcome());
      if (wave) {
        TakeOutcome(*wave);
      } else {
        progress = Progress::kWaiting;
      }
      break;
    }
    case Stage::kOwnStep: {
      // An error here ends the epoch: the other ranks are in the middle of this step.
      ASSIGN_OR_RETURN(progress, own_.Advance());
      // The others may still be in this step; the next vote brings all together again.
      if (progress == Progress::kDone) stage_ = Stage::kNone;
      break;
    }
    case Stage::kIdleStep: {
      ASSIGN_OR_RETURN(const model::Step::Progress idle, idle_->Advance());
      if (idle == model::Step::Progress::kWaiting) progress = Progress::kWaiting;
      if (idle == model::Step::Progress::kDone) stage_ = Stage::kNone;
      break;
    }
  }
  waits_ = progress == Progress::kWaiting;
  if (!waits_) moved_at_ = clock_.Now();
  return progress;
}

void WaveModel::TakeOutcome(const Wave& wave) {
  stage_ = Stage::kNone;
  switch (wave.kind) {
    case Wave::Kind::kStep:
      rests_ = 0;
      next_vote_ = absl::InfinitePast();
      // A plan that came after the vote waits for the next one: its rows were not counted. This
      // rank then makes the step of the others without rows.
      if (voted_rows_) {
        own_.Begin(*plan_);
        stage_ = Stage::kOwnStep;
      } else {
        idle_.emplace(config_, exchange_);
        stage_ = Stage::kIdleStep;
      }
      return;
    case Wave::Kind::kRest: {
      // The pause depends on the number of rests alone, which is the same on all ranks.
      // The shift is bounded; kPauseMax is reached long before.
      const absl::Duration pause = absl::Milliseconds(1) * (1 << std::min(rests_, 10));
      next_vote_ = clock_.Now() + std::min(pause, kPauseMax);
      ++rests_;
      return;
    }
    case Wave::Kind::kStop:
      stopped_ = true;
      return;
  }
}

}  // namespace epic::worker
