#include "worker/lock_step_rank.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "worker/exchange/rank_class.h"
#include "worker/service/placement_messages.h"

namespace epic::worker {
namespace {

constexpr absl::Duration kStillMax = absl::Seconds(10);  // longer than any step

}  // namespace

WorkerOptions LockStepOptions(WorkerOptions options, int rank_count) {
  options.roles = {"attention", "experts"};
  options.expert_ranks = rank_count;
  options.tolerate_losses = 0;
  return options;
}

LockStepRank::LockStepRank(const WorkerOptions& options, const RankPlan& plan,
                           std::optional<cluster::JoinToken> token, EpochSource& epochs,
                           EpollLoop& loop, Env env)
    : plan_(plan),
      epochs_(epochs),
      loop_(loop),
      env_(env),
      experts_(env.clock, plan.config, *plan.checkpoint, *plan.backend, plan.expert_slots,
               plan.expert.source_bytes),
      placement_(experts_),
      sequences_(env.clock),
      connection_(
          std::in_place, env, options.coordinator, Identity(), std::move(token),
          Connection::Handlers{.on_message = [this](const v1::ControlMessage& m) { OnMessage(m); },
                               .on_link = [this](cluster::ControlLink* link) { OnLink(link); }}) {
  plan_.backend->SetInterlude([this] {
    if (env_.clock.Now() >= reported_at_ + cluster::kReportInterval) Report();
  });
  ReportAgain();
}

LockStepRank::~LockStepRank() { plan_.backend->SetInterlude({}); }

v1::WorkerIdentity LockStepRank::Identity() const {
  v1::WorkerIdentity identity = plan_.identity();
  identity.set_attention(true);
  identity.set_experts(true);
  epochs_.Introduce(identity);
  *identity.mutable_held_experts() = LayersFrom(experts_.held());
  identity.set_epoch_map(placement_.newest_map());
  return identity;
}

absl::Status LockStepRank::Run() {
  while (true) {
    const absl::Status status = RunEpoch();
    if (status.ok()) return status;
    // Where processes end with their epoch, this one does here.
    epochs_.Abort(std::string(status.message()));
    LeaveEpoch();
    if (ends_ || !absl::IsAborted(status)) return ends_ ? absl::OkStatus() : status;
    LOG_WARNING("the epoch has ended: {}", std::string(status.message()));
  }
}

absl::Status LockStepRank::RunEpoch() {
  RETURN_IF_ERROR(AwaitEpoch());
  if (collective_ == nullptr) return absl::OkStatus();  // it leaves before there is one
  RETURN_IF_ERROR(Load());
  RETURN_IF_ERROR(AwaitOthers());
  sequences_.Serve(*engine_, plan_.ready());
  while (connection_->refusal().ok() && !wave_->stopped()) {
    loop_.RunOnce(experts_.loading() ? absl::ZeroDuration() : wave_->wait());
    sequences_.Advance();
    if (ends_ && sequences_.drained()) wave_->End();
    RETURN_IF_ERROR(wave_->Join());
    RETURN_IF_ERROR(placement_.Advance(*exchange_));
    RETURN_IF_ERROR(LoadOneExpert());
    if (epoch_over_) return absl::AbortedError("the coordinator's link has ended");
    RETURN_IF_ERROR(CheckMoving());
  }
  return connection_->refusal();
}

absl::Status LockStepRank::AwaitEpoch() {
  while (connection_->refusal().ok() && !ends_) {
    ASSIGN_OR_RETURN(collective_, epochs_.collective());
    if (collective_ != nullptr && placement_.invited()) {
      epoch_over_ = false;
      return absl::OkStatus();
    }
    loop_.RunOnce(absl::Milliseconds(50));
  }
  collective_ = nullptr;
  return connection_->refusal();
}

absl::Status LockStepRank::CheckMoving() {
  if (!revoked_at_) return absl::OkStatus();
  if (wave_->moved_at() > *revoked_at_) {
    revoked_at_.reset();
  } else if (env_.clock.Now() - *revoked_at_ > kStillMax) {
    return absl::AbortedError(
        absl::StrCat("revoked, and the world has not moved for ", absl::FormatDuration(kStillMax)));
  }
  return absl::OkStatus();
}

void LockStepRank::LeaveEpoch() {
  revoked_at_.reset();
  while (!epochs_.Left()) loop_.RunOnce(absl::Milliseconds(1));
  collective_ = nullptr;
  sequences_.StopServing();
  placement_.Leave();
  engine_.reset();
  wave_.reset();
  transformer_.reset();
  exchange_.reset();
}

void LockStepRank::Drain() {
  if (std::exchange(ends_, true)) return;
  sequences_.StartDraining();
  TellDrain();
}

void LockStepRank::OnLink(cluster::ControlLink* link) {
  link_ = link;
  epochs_.OnLink(link);
  placement_.OnLink();
  // What it holds by now is said with the next hello.
  if (link == nullptr) connection_->SetIdentity(Identity());
  if (link == nullptr && !epochs_.outlives_links()) {
    // On the next link this rank is not ready before the next epoch is.
    epoch_over_ = true;
    sequences_.StopServing();
  }
  sequences_.Connect(link);
  if (ends_) TellDrain();
}

void LockStepRank::TellDrain() {
  v1::ControlMessage message;
  message.mutable_drain();
  Send(std::move(message));
}

void LockStepRank::Send(v1::ControlMessage message) {
  if (link_ != nullptr) link_->Send(std::move(message));
}

absl::Status LockStepRank::Load() {
  const absl::Time began = env_.clock.Now();
  placement_.Begin();
  const SchedulerLimits& limits = plan_.limits.scheduler;
  if (!model_) {
    const model::LoadOptions load{.wants_expert = [](int, int) { return false; },
                                  .progress = [this](int64_t bytes) { ReportLoading(bytes); }};
    ASSIGN_OR_RETURN(model_,
                     model::Model::Load(plan_.config, *plan_.checkpoint, *plan_.backend, load));
    pool_.emplace(*plan_.backend, model_->kv_layout(), plan_.config.layer_count,
                  plan_.memory.page_count);
    pages_.emplace(plan_.memory.page_count, [this](int32_t page) { pool_->ZeroPage(page); });
  }
  RETURN_IF_ERROR(LoadExperts());
  LOG_INFO("rank {} of {} that step together: {} experts, loaded in {:.1f} s", collective_->rank(),
           collective_->size(), experts_.held_count(),
           absl::ToDoubleSeconds(env_.clock.Now() - began));
  exchange_.emplace(plan_.exchange_shape(), limits.max_num_batched_tokens, *plan_.backend, experts_,
                    *collective_);
  RETURN_IF_ERROR(placement_.Start(*exchange_));
  transformer_.emplace(*model_, *plan_.backend, *exchange_, *pool_, limits.max_num_batched_tokens,
                       limits.max_logit_rows);
  wave_.emplace(plan_.config, *transformer_, *exchange_, env_.clock);
  engine_.emplace(plan_.limits, *wave_, *pages_);
  return absl::OkStatus();
}

absl::Status LockStepRank::LoadExperts() {
  while (experts_.loading() || !placement_.may_start()) {
    RETURN_IF_ERROR(LoadOneExpert());
    ReportLoading(plan_.weights.source_bytes + experts_.order_bytes());
    RETURN_IF_ERROR(connection_->refusal());
    if (epoch_over_) return absl::AbortedError("the coordinator's link has ended");
    if (!experts_.loading()) loop_.RunOnce(absl::Milliseconds(2));
  }
  return absl::OkStatus();
}

absl::Status LockStepRank::LoadOneExpert() {
  if (!experts_.loading()) return absl::OkStatus();
  const std::optional<ExpertOutcome> outcome = experts_.Advance();
  if (!outcome) return absl::OkStatus();
  Send(MessageFrom(*outcome));
  // An epoch cannot begin without what it was promised; later it goes on with what it has.
  return wave_ ? absl::OkStatus() : outcome->status;
}

absl::Status LockStepRank::AwaitOthers() {
  RankClass ranks(*collective_, absl::StrCat(plan_.backend->profile(), " of checkpoint ",
                                             plan_.checkpoint->fingerprint()));
  while (true) {
    ASSIGN_OR_RETURN(const bool agreed, ranks.Agreed());
    if (agreed) return absl::OkStatus();
    loop_.RunOnce(absl::Milliseconds(2));
  }
}

void LockStepRank::ReportAgain() {
  Report();
  loop_.At(reported_at_ + cluster::kReportInterval, [this] { ReportAgain(); });
}

void LockStepRank::Report() {
  reported_at_ = env_.clock.Now();
  if (link_ == nullptr) return;
  v1::ControlMessage message;
  v1::RankReport& report = *message.mutable_rank_report();
  if (!engine_) {
    report.set_activity(v1::RankReport::LOADING);
    report.set_loaded_bytes(loaded_bytes_);
  } else if (sequences_.busy()) {
    const StepPlace place = wave_->place();
    report.set_activity(v1::RankReport::COMPUTING);
    report.set_stage(place.stage);
    report.set_layer(place.layer);
  }
  report.set_ticks(++reports_);
  link_->Send(std::move(message));
}

void LockStepRank::ReportLoading(int64_t bytes) {
  loaded_bytes_ = bytes;
  const int64_t total = plan_.weights.source_bytes + experts_.order_total_bytes();
  sequences_.ReportLoading(std::min(bytes, total), total);
  loop_.RunOnce(absl::ZeroDuration());
}

void LockStepRank::OnMessage(const v1::ControlMessage& message) {
  epochs_.OnMessage(message);
  if (placement_.OnMessage(message)) return;
  if (message.has_welcome()) {
    LOG_INFO("the coordinator calls this process rank {}", message.welcome().rank());
  } else if (message.has_revoked()) {
    LOG_WARNING("the coordinator has revoked this rank: {}", message.revoked().reason());
    revoked_at_ = env_.clock.Now();
    connection_->Renew();
  } else {
    sequences_.OnMessage(message);
  }
}

}  // namespace epic::worker
