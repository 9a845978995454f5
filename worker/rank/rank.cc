#include "worker/rank/rank.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/mutant.h"

namespace epic::worker {
namespace {

// How long the coordinator may take to close the link of a rank that has said Goodbye. It does so
// at once if it is there; if it is gone, nobody needs the Goodbye.
constexpr absl::Duration kGoodbyeTime = absl::Seconds(1);

}  // namespace

Rank::Rank(Env env, v1::WorkerIdentity identity, ControlDialer dial, ExchangePolicy& policy,
           RankOptions options, RankHandlers handlers)
    : env_(env),
      identity_(std::move(identity)),
      policy_(policy),
      options_(options),
      handlers_(std::move(handlers)),
      sequences_(env.clock),
      ticks_(env.clock),
      connection_(
          env, std::move(dial),
          {.identity =
               [this] {
                 v1::WorkerIdentity identity = identity_;
                 policy_.Introduce(identity);
                 return identity;
               },
           .on_message = [this](const v1::ControlMessage& message) { OnMessage(message); },
           .on_link = [this](cluster::ControlLink* link) { OnLink(link); }}) {
  CHECK_GE(options.leave_time, absl::ZeroDuration());
  // In the constructor's body, for the dial calls handlers that use every member.
  policy_.Attach(*this);
  connection_.Dial();
  report_timer_ = env_.loop.At(env_.clock.Now(), [this] { OnReportTime(); });
}

Rank::~Rank() { env_.loop.Cancel(report_timer_); }

void Rank::ReportLoading(int64_t loaded_bytes, int64_t total_bytes) {
  CHECK(engine_ == nullptr);
  sequences_.ReportLoading(std::min(loaded_bytes, total_bytes), total_bytes);
}

void Rank::Serve(Engine& engine, TokenModel& model, v1::WorkerReady ready) {
  CHECK(engine_ == nullptr && identity_.attention());
  engine_ = &engine;
  model_ = &model;
  sequences_.Serve(engine, std::move(ready));
}

void Rank::StopServing() {
  sequences_.StopServing();
  engine_ = nullptr;
  model_ = nullptr;
}

bool Rank::CanGoOn() const {
  // A step that waits learns of its answers only when it is asked again. The last of them may have
  // been taken in, or computed here, by the policy's turn: after the step was asked, and before the
  // rank sleeps. Nothing would arrive then to wake it up.
  const bool answered = policy_.HasReadyTicket() && !EPIC_MUTANT("ranks_sleep_on_answers");
  const bool stepping = sequences_.busy() && (!sequences_.waiting() || answered);
  return stepping || policy_.CanGoOn();
}

absl::Duration Rank::wait_max() const {
  return over_ || CanGoOn() ? absl::ZeroDuration() : policy_.wait_max();
}

void Rank::Turn() {
  CHECK(!over_);
  sleep_meter_.Wake(env_.clock.Now());
  ticks_.Tick(/*idle=*/!could_go_on_);
  AdvanceSequences();
  if (ends_ && sequences_.drained()) policy_.End();
  // After the step, which may have rows for the experts here. A rank that waits for answers serves
  // all the same: else two ranks could wait for each other.
  const absl::StatusOr<bool> worked = policy_.Turn();
  if (!worked.ok()) return End(worked.status());
  if (*worked) sleep_meter_.Worked(inputs());
  AdvanceEnd();
  could_go_on_ = CanGoOn();
  if (!over_ && !could_go_on_ && policy_.news_wakes_the_loop()) {
    sleep_meter_.Sleep(env_.clock.Now(), inputs());
  }
}

void Rank::AdvanceSequences() {
  const bool stepping = sequences_.busy();
  if (stepping) model_->PaceAttention(policy_.serves_others() ? &env_.clock : nullptr);
  sequences_.Advance();
  // A step that waits has done nothing but ask.
  if (stepping && !sequences_.waiting()) sleep_meter_.Worked(inputs());
}

// The exchange sees every message, also those that the rank heeds itself: a policy may have its own
// part in them. What it leaves is about sequences.
void Rank::OnMessage(const v1::ControlMessage& message) {
  ++control_inputs_;
  switch (message.body_case()) {
    case v1::ControlMessage::kWelcome:
      LOG_INFO("this process is rank {}", message.welcome().rank());
      welcomed_ = true;
      if (handlers_.on_welcome) {
        handlers_.on_welcome(message.welcome().rank(), connection_.generation());
      }
      break;
    case v1::ControlMessage::kRevoked:
      LOG_WARNING("the coordinator has revoked this rank: {}", message.revoked().reason());
      connection_.Renew();
      break;
    case v1::ControlMessage::kDrain:
      ends_ = told_to_drain_ = true;
      break;
    default:
      break;
  }
  if (!policy_.OnMessage(message)) sequences_.OnMessage(message);
}

void Rank::OnLink(cluster::ControlLink* link) {
  ++control_inputs_;
  link_ = link;
  welcomed_ = false;
  policy_.Connect(link);
  sequences_.Connect(link);
  // The coordinator that answers next does not know yet that this rank wants to leave.
  if (ends_ && options_.asks_to_leave) AskToLeave();
}

void Rank::Drain() {
  // A rank that is told twice, or drains already, is wanted to end now.
  const bool again = std::exchange(ends_, true);
  leave_at_ = env_.clock.Now() + (again ? absl::ZeroDuration() : options_.leave_time);
  sequences_.StartDraining();
  if (!again && options_.asks_to_leave) AskToLeave();
}

void Rank::AskToLeave() {
  if (link_ == nullptr || told_to_drain_) return;
  v1::ControlMessage message;
  message.mutable_drain();
  link_->Send(std::move(message));
}

bool Rank::MayLeave() const {
  return policy_.MayEnd() && (told_to_drain_ || env_.clock.Now() >= leave_at_);
}

void Rank::AdvanceEnd() {
  if (!connection_.refusal().ok()) return End(connection_.refusal());
  if (!ends_ || !sequences_.drained()) return;
  // The link outlives the Goodbye until the coordinator has it: what a destroyed link had not sent
  // is lost, and the end of a process without a Goodbye looks like a death.
  if (goodbye_at_ == absl::InfiniteFuture()) {
    if (!MayLeave()) return;
    if (!welcomed_) return End(absl::OkStatus());  // nobody knows this rank
    return SayGoodbye();
  }
  const bool waited = env_.clock.Now() >= goodbye_at_ + kGoodbyeTime;
  if (link_ == nullptr || waited) End(absl::OkStatus());
}

void Rank::SayGoodbye() {
  CHECK(link_ != nullptr && !sequences_.busy());
  goodbye_at_ = env_.clock.Now();
  connection_.Retire();
  v1::ControlMessage message;
  message.mutable_goodbye();
  link_->Send(std::move(message));
}

void Rank::End(absl::Status why) {
  CHECK(!over_);
  over_ = true;
  status_ = std::move(why);
}

void Rank::ReportProgress() {
  if (env_.clock.Now() < reported_at_ + cluster::kReportInterval) return;
  ticks_.Tick(/*idle=*/false);
  Report();
}

void Rank::OnReportTime() {
  Report();
  report_timer_ =
      env_.loop.At(reported_at_ + cluster::kReportInterval, [this] { OnReportTime(); });
}

void Rank::Report() {
  reported_at_ = env_.clock.Now();
  if (link_ == nullptr) return;
  v1::ControlMessage message;
  v1::RankReport& report = *message.mutable_rank_report();
  policy_.FillReport(report);
  // What keeps a rank from going on counts before what it could do.
  if (report.activity() == v1::RankReport::IDLE) {
    if (identity_.attention() && engine_ == nullptr) {
      report.set_activity(v1::RankReport::LOADING);
    } else if (sequences_.busy() || policy_.computing()) {
      const StepPlace place = model_ != nullptr ? model_->place() : StepPlace{};
      report.set_activity(v1::RankReport::COMPUTING);
      report.set_stage(place.stage);
      report.set_layer(place.layer);
    }
  }
  report.set_ticks(ticks_.count());
  report.set_tick_gap_p99_seconds(absl::ToDoubleSeconds(ticks_.GapP99()));
  report.set_asleep_with_work_seconds(
      absl::ToDoubleSeconds(sleep_meter_.asleep_with_work()));
  if (engine_ != nullptr) report.set_replayed_rows(engine_->replayed_rows());
  if (handlers_.add_gauges) handlers_.add_gauges(report);
  link_->Send(std::move(message));
}

}  // namespace epic::worker
