#include "worker/rank/lock_step_policy.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "worker/rank/rank.h"
#include "worker/service/placement_messages.h"

namespace epic::worker {
namespace {

constexpr absl::Duration kStillMax = absl::Seconds(10);  // longer than any step
// How often news of the epoch are looked for, since nothing wakes the loop up for them. Chosen: at
// rest seldom, and often while ranks wait for each other at a start or an end.
constexpr absl::Duration kEpochPoll = absl::Milliseconds(50);
constexpr absl::Duration kStartPoll = absl::Milliseconds(2);
constexpr absl::Duration kLeavePoll = absl::Milliseconds(1);

}  // namespace

WorkerOptions LockStepOptions(WorkerOptions options, int rank_count) {
  CHECK_GT(rank_count, 0);
  options.roles = {"attention", "experts"};
  options.expert_ranks = rank_count;
  // An epoch is lost as one (rule 5.5), so no rank keeps room for another's experts.
  options.tolerate_losses = 0;
  return options;
}

LockStepPolicy::LockStepPolicy(const RankPlan& plan, EpochSource& epochs, const Clock& clock)
    : plan_(plan),
      epochs_(epochs),
      clock_(clock),
      experts_(clock, plan.config, *plan.checkpoint, *plan.backend, plan.expert_slots,
               plan.expert.source_bytes),
      placement_(experts_) {}

int64_t LockStepPolicy::bytes_to_load() const {
  return plan_.weights.source_bytes + plan_.expert_slots * plan_.expert.source_bytes;
}

void LockStepPolicy::Introduce(v1::WorkerIdentity& identity) const {
  epochs_.Introduce(identity);
  *identity.mutable_held_experts() = LayersFrom(experts_.held());
  identity.set_epoch_map(placement_.newest_map());
}

void LockStepPolicy::Connect(cluster::ControlLink* link) {
  link_ = link;
  epochs_.OnLink(link);
  placement_.OnLink();
  if (link != nullptr || epochs_.outlives_links()) return;
  // On the next link this rank must not say that it is ready before the next epoch is.
  epoch_over_ = true;
  rank_->StopServing();
}

bool LockStepPolicy::OnMessage(const v1::ControlMessage& message) {
  // Both parts see an invitation: it brings a communicator and says where experts are.
  epochs_.OnMessage(message);
  if (message.has_revoked()) revoked_at_ = clock_.Now();
  return placement_.OnMessage(message) || message.has_revoked() || message.has_welcome();
}

absl::StatusOr<bool> LockStepPolicy::Turn() {
  absl::StatusOr<bool> worked = TurnStage();
  // With a failure_ the epoch has been left already, and the rank ends.
  if (worked.ok() || !failure_.ok()) return worked;
  // Where processes end with their epoch, this one does here.
  epochs_.Abort(std::string(worked.status().message()));
  LOG_WARNING("the epoch has ended: {}", std::string(worked.status().message()));
  // Aborted: this epoch ended under the rank, and another may follow. All other errors would come
  // again.
  if (!absl::IsAborted(worked.status())) failure_ = worked.status();
  stage_ = Stage::kLeaving;
  return true;
}

absl::StatusOr<bool> LockStepPolicy::TurnStage() {
  switch (stage_) {
    case Stage::kNoEpoch:
      return Enter();
    case Stage::kLoading:
      return Load();
    case Stage::kAgreeing:
      return Agree();
    case Stage::kStepping:
      return Step();
    case Stage::kLeaving:
      return Leave();
  }
  return false;
}

absl::Duration LockStepPolicy::wait_max() const {
  switch (stage_) {
    case Stage::kNoEpoch:
      return kEpochPoll;
    case Stage::kLoading:
    case Stage::kAgreeing:
      return kStartPoll;
    case Stage::kStepping:
      return stopped() ? kEpochPoll : wave_->wait();
    case Stage::kLeaving:
      return kLeavePoll;
  }
  return absl::ZeroDuration();
}

absl::StatusOr<bool> LockStepPolicy::Enter() {
  CHECK(collective_ == nullptr && !engine_);
  if (ends_ || attention_ == nullptr) return false;
  ASSIGN_OR_RETURN(cluster::Collective* const collective, epochs_.collective());
  // Under MPI the communicator is there before the coordinator says what to load.
  if (collective == nullptr || !placement_.invited()) return false;
  collective_ = collective;
  epoch_over_ = false;
  load_began_ = clock_.Now();
  placement_.Begin();
  stage_ = Stage::kLoading;
  return true;
}

absl::StatusOr<bool> LockStepPolicy::Load() {
  if (epoch_over_) return absl::AbortedError("the coordinator's link has ended");
  const bool loading = experts_.loading();
  RETURN_IF_ERROR(LoadOneExpert());
  if (loading) {
    const int64_t weights = plan_.weights.source_bytes;
    rank_->ReportLoading(weights + experts_.order_bytes(), weights + experts_.order_total_bytes());
  }
  if (experts_.loading() || !placement_.may_start()) return loading;
  LOG_INFO("rank {} of {} that step together: {} experts, loaded in {:.1f} s", collective_->rank(),
           collective_->size(), experts_.held_count(),
           absl::ToDoubleSeconds(clock_.Now() - load_began_));
  RETURN_IF_ERROR(BuildEngine());
  // Only now: the answer also tells that all ranks are ready (rank_class.h).
  ranks_.emplace(*collective_, absl::StrCat(plan_.backend->profile(), " of checkpoint ",
                                            plan_.checkpoint->fingerprint()));
  stage_ = Stage::kAgreeing;
  return true;
}

absl::Status LockStepPolicy::LoadOneExpert() {
  if (!experts_.loading()) return absl::OkStatus();
  const std::optional<ExpertOutcome> outcome = experts_.Advance();
  if (!outcome) return absl::OkStatus();
  if (link_ != nullptr) link_->Send(MessageFrom(*outcome));
  // An epoch cannot begin without what it was promised; later it goes on with what it has.
  return stage_ == Stage::kLoading ? outcome->status : absl::OkStatus();
}

absl::Status LockStepPolicy::BuildEngine() {
  const SchedulerLimits& limits = plan_.limits.scheduler;
  exchange_.emplace(plan_.exchange_shape(), limits.max_num_batched_tokens, *plan_.backend, experts_,
                    *collective_);
  RETURN_IF_ERROR(placement_.Start(*exchange_));
  transformer_.emplace(*attention_->model, *plan_.backend, *exchange_, attention_->pool,
                       limits.max_num_batched_tokens, limits.max_logit_rows);
  wave_.emplace(plan_.config, *transformer_, *exchange_, clock_);
  engine_.emplace(plan_.limits, *wave_, attention_->pages);
  return absl::OkStatus();
}

absl::StatusOr<bool> LockStepPolicy::Agree() {
  ASSIGN_OR_RETURN(const bool agreed, ranks_->Agreed());
  // Until all are, a sequence that came here could not be stepped.
  if (!agreed) return false;
  rank_->Serve(*engine_, *wave_, plan_.ready());
  stage_ = Stage::kStepping;
  return true;
}

absl::StatusOr<bool> LockStepPolicy::Step() {
  if (wave_->stopped()) return false;
  RETURN_IF_ERROR(wave_->Join());
  RETURN_IF_ERROR(placement_.Advance(*exchange_));
  RETURN_IF_ERROR(LoadOneExpert());
  if (epoch_over_) return absl::AbortedError("the coordinator's link has ended");
  RETURN_IF_ERROR(CheckMoving());
  return true;
}

absl::Status LockStepPolicy::CheckMoving() {
  if (!revoked_at_) return absl::OkStatus();
  if (wave_->moved_at() > *revoked_at_) {
    revoked_at_.reset();
  } else if (clock_.Now() - *revoked_at_ > kStillMax) {
    return absl::AbortedError(
        absl::StrCat("revoked, and the world has not moved for ", absl::FormatDuration(kStillMax)));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> LockStepPolicy::Leave() {
  // The collective may still write into buffers of the exchange.
  if (!epochs_.Left()) return false;
  rank_->StopServing();
  placement_.Leave();
  // In the reverse order of BuildEngine: each refers to those that were made before it.
  engine_.reset();
  wave_.reset();
  transformer_.reset();
  exchange_.reset();
  ranks_.reset();
  collective_ = nullptr;
  revoked_at_.reset();
  stage_ = Stage::kNoEpoch;
  // A rank that was told to end has reached its end all the same.
  if (!failure_.ok() && !rank_->ends()) return failure_;
  failure_ = absl::OkStatus();
  return true;
}

void LockStepPolicy::FillReport(v1::RankReport& report) const {
  // No other stage steps, so all of them count as loading: the rank may then be silent for 10 s
  // (rule 4.4).
  if (stage_ == Stage::kStepping) return;
  report.set_activity(v1::RankReport::LOADING);
  report.set_loaded_bytes(experts_.order_bytes());
}

void LockStepPolicy::End() {
  ends_ = true;
  if (wave_) wave_->End();
}

}  // namespace epic::worker
