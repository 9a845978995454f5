#include "worker/service/rank_service.h"

#include <algorithm>
#include <utility>

#include "base/failpoint.h"
#include "base/log.h"
#include "cluster/placement/expert_map.h"
#include "worker/service/placement_messages.h"

namespace epic::worker {

void WorkTicks::Tick(bool idle) {
  const absl::Time now = clock_.Now();
  if (!idle && count_ > 0) {
    if (gaps_.size() < kGaps) gaps_.emplace_back();
    gaps_[next_gap_] = now - last_;
    next_gap_ = (next_gap_ + 1) % kGaps;
  }
  ++count_;
  last_ = now;
}

absl::Duration WorkTicks::GapP99() const {
  if (gaps_.empty()) return absl::ZeroDuration();
  std::vector<absl::Duration> sorted = gaps_;
  const auto at = sorted.begin() + static_cast<ptrdiff_t>(sorted.size() * 99 / 100);
  std::nth_element(sorted.begin(), at, sorted.end());
  return *at;
}

bool RankService::OnMessage(const v1::ControlMessage& message) {
  switch (message.body_case()) {
    case v1::ControlMessage::kWelcome:
      LOG_INFO("this process is rank {}", message.welcome().rank());
      exchange_.Join(message.welcome().rank());
      return true;
    case v1::ControlMessage::kPlaceExperts:
      PlaceExperts(message.place_experts());
      return true;
    case v1::ControlMessage::kPublishMap:
      TakeMap(message.publish_map());
      return true;
    case v1::ControlMessage::kRevoked:
      LOG_WARNING("the coordinator has revoked this rank: {}", message.revoked().reason());
      if (handlers_.on_revoked) handlers_.on_revoked(message.revoked().reason());
      return true;
    default:
      return false;
  }
}

void RankService::PlaceExperts(const v1::PlaceExperts& message) {
  absl::StatusOr<ExpertOrder> order = OrderFrom(message);
  absl::Status status = order.status();
  if (slots_ == nullptr) status = absl::FailedPreconditionError("this rank holds no experts");
  if (!status.ok()) return Tell({.order = message.order(), .status = std::move(status)});
  slots_->Order(*std::move(order));
}

void RankService::Advance() {
  if (!loading()) return;
  const std::optional<ExpertOutcome> outcome = slots_->Advance();
  TellProgress();
  if (outcome) Tell(*outcome);
}

void RankService::TellProgress() {
  v1::ControlMessage message;
  v1::LoadProgress& progress = *message.mutable_load_progress();
  progress.set_loaded_bytes(base_bytes_ + slots_->order_bytes());
  progress.set_total_bytes(base_bytes_ + slots_->order_total_bytes());
  Send(std::move(message));
}

void RankService::Tell(const ExpertOutcome& outcome) {
  if (!outcome.status.ok()) {
    LOG_ERROR("experts of order {}: {}", outcome.order, std::string(outcome.status.message()));
  }
  Send(MessageFrom(outcome));
}

void RankService::TakeMap(const v1::PublishMap& message) {
  absl::StatusOr<cluster::ExpertMap> map = cluster::ExpertMapFrom(message);
  if (!map.ok()) {
    LOG_ERROR("ignored a map: {}", std::string(map.status().message()));
    return;
  }
  exchange_.SetMap(*std::move(map));
  Pass(Failpoint::kMapTaken);
}

void RankService::OnLinkDown(const cluster::RankEntry& rank, const absl::Status& why) {
  LOG_WARNING("no connection to rank {}: {}", rank.rank, std::string(why.message()));
  v1::ControlMessage message;
  v1::LinkDown& down = *message.mutable_link_down();
  down.set_rank(rank.rank);
  down.set_generation(rank.generation);
  down.set_evidence(std::string(why.message()));
  down_.insert({rank.rank, rank.generation});
  Send(std::move(message));
}

void RankService::OnLinkUp(const cluster::RankEntry& rank) {
  if (down_.erase({rank.rank, rank.generation}) == 0) return;
  v1::ControlMessage message;
  message.mutable_link_up()->set_rank(rank.rank);
  message.mutable_link_up()->set_generation(rank.generation);
  Send(std::move(message));
}

void RankService::AskToLeave() {
  v1::ControlMessage message;
  message.mutable_drain();
  Send(std::move(message));
}

void RankService::Connect(cluster::ControlLink* link) {
  link_ = link;
  down_.clear();
}

void RankService::Report(const Gauges& gauges) {
  v1::ControlMessage message;
  v1::RankReport& report = *message.mutable_rank_report();
  const std::optional<ExchangeWait> wait = exchange_.waiting();
  if (wait && !exchange_.serving()) {
    report.set_activity(v1::RankReport::WAITING);
    report.set_waits_for(wait->rank);
    report.set_layer(wait->layer);
    report.set_waiting_seconds(absl::ToDoubleSeconds(clock_.Now() - wait->since));
  } else if (gauges.loading || loading()) {
    report.set_activity(v1::RankReport::LOADING);
    if (loading()) report.set_loaded_bytes(slots_->order_bytes());
  } else if (gauges.computing || exchange_.serving()) {
    report.set_activity(v1::RankReport::COMPUTING);
    report.set_stage(gauges.place.stage);
    report.set_layer(gauges.place.layer);
  }
  report.set_ticks(ticks_.count());
  report.set_tick_gap_p99_seconds(absl::ToDoubleSeconds(ticks_.GapP99()));
  const ExchangeGauges exchange = exchange_.gauges();
  report.set_outstanding_dispatches(exchange.outstanding_dispatches);
  report.set_credits(exchange.credits);
  report.set_stale_frames(exchange_.counters().stale_frames);
  report.set_expert_rows_served(exchange_.served().rows_served);
  report.set_map_term(exchange_.map().version.term);
  report.set_map_number(exchange_.map().version.number);
  report.set_doorbell_rescues(gauges.doorbell_rescues);
  report.set_replayed_rows(gauges.replayed_rows);
  report.set_resident_bytes(gauges.resident_bytes);
  report.set_asleep_with_work_seconds(absl::ToDoubleSeconds(gauges.asleep_with_work));
  Send(std::move(message));
}

void RankService::Send(v1::ControlMessage message) {
  if (link_ != nullptr) link_->Send(std::move(message));
}

}  // namespace epic::worker
