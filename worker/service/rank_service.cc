#include "worker/service/rank_service.h"

#include <utility>

#include "base/failpoint.h"
#include "base/log.h"
#include "cluster/placement/expert_map.h"
#include "worker/service/placement_messages.h"

namespace epic::worker {

bool RankService::OnMessage(const v1::ControlMessage& message) {
  switch (message.body_case()) {
    case v1::ControlMessage::kWelcome:
      exchange_.Join(message.welcome().rank());
      return true;
    case v1::ControlMessage::kPlaceExperts:
      PlaceExperts(message.place_experts());
      return true;
    case v1::ControlMessage::kPublishMap:
      TakeMap(message.publish_map());
      return true;
    case v1::ControlMessage::kRevoked:
      return true;  // the next link is another generation's; until then nothing is to be done
    default:
      return false;
  }
}

void RankService::PlaceExperts(const v1::PlaceExperts& message) {
  absl::StatusOr<ExpertOrder> order = OrderFrom(message);
  absl::Status status = order.status();
  // Refused and not ignored: the coordinator waits for the outcome of each order.
  if (slots_ == nullptr) status = absl::FailedPreconditionError("this rank holds no experts");
  if (!status.ok()) return Tell({.order = message.order(), .status = std::move(status)});
  slots_->Order(*std::move(order));
}

void RankService::Advance() {
  if (!loading()) return;
  const std::optional<ExpertOutcome> outcome = slots_->Advance();
  // After each expert, so that /ready tells how far the loading is.
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
  // The old map stays in use: at worst its hosts answer NOT_HERE (rule 3.2).
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
  // The coordinator counts only links that were said to be down, so only those are taken back.
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

void RankService::Connect(cluster::ControlLink* link) {
  link_ = link;
  // The coordinator of this link has been told of no broken connection yet.
  down_.clear();
}

void RankService::FillReport(v1::RankReport& report) const {
  const std::optional<ExchangeWait> wait = exchange_.waiting();
  // A rank that waits and serves is no link in a chain of waiting ranks: it must not look like one.
  if (wait && !exchange_.serving()) {
    report.set_activity(v1::RankReport::WAITING);
    report.set_waits_for(wait->rank);
    report.set_layer(wait->layer);
    report.set_waiting_seconds(absl::ToDoubleSeconds(clock_.Now() - wait->since));
  } else if (loading()) {
    report.set_activity(v1::RankReport::LOADING);
    report.set_loaded_bytes(slots_->order_bytes());
  }
  const ExchangeGauges exchange = exchange_.gauges();
  report.set_outstanding_dispatches(exchange.outstanding_dispatches);
  report.set_credits(exchange.credits);
  report.set_stale_frames(exchange_.counters().stale_frames);
  report.set_expert_rows_served(exchange_.served().rows_served);
  report.set_map_term(exchange_.map().version.term);
  report.set_map_number(exchange_.map().version.number);
}

void RankService::Send(v1::ControlMessage message) {
  if (link_ != nullptr) link_->Send(std::move(message));
}

}  // namespace epic::worker
