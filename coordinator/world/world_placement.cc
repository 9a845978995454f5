// The part of World that carries out what its parts decide: placements, rulings and drains.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status.h"
#include "coordinator/world/world.h"

namespace epic::coordinator {

void World::StartIfComplete(absl::Time now) {
  // Epochs need no start: each begins when its last rank comes.
  if (!group_ || group_->started()) return;
  const bool starts =
      start_rule_.MayStart({.joined = members_.count(),
                            .has_attention = group_->has_attention(),
                            .has_experts = !group_->hosts().empty(),
                            .slots_missing = group_->hosts().Shortfall(),
                            .since_last_join = now - members_.last_join_at()});
  if (!starts) return;
  group_->Start();
  events_.Append(EventKind::kStart, -1, 0,
                 absl::StrFormat("%d ranks, %d experts", members_.count(),
                                 group_->hosts().shape().expert_total()));
  PlanUrgently();
}

void World::PlanSoon() {
  if (group_) group_->PlanSoon();
}

void World::PlanUrgently() {
  if (group_) Tell(*group_, group_->PlanUrgently(frozen()));
}

void World::Tell(const ExpertGroup& group, Placement placement) {
  // Maps go before orders: ranks must know that a holder is gone before that holder is told to drop
  // the expert (protocol.md 6.3).
  if (placement.maps) {
    for (auto& [rank, map] : *placement.maps) {
      v1::ControlMessage message;
      *message.mutable_publish_map() = std::move(map);
      SendTo(rank, std::move(message));
    }
    const cluster::ExpertMap& map = group.map();
    events_.Append(EventKind::kMap, -1, 0,
                   absl::StrFormat("number %d: %d ranks, %d experts unhosted, %d on one rank alone",
                                   map.version.number, map.ranks.size(), map.unhosted_count(),
                                   group.hosts().unreplicated_count()));
  }
  for (auto& [rank, order] : placement.orders) {
    const ExpertHosts& hosts = group.hosts();
    // Drops alone are not worth an event.
    if (hosts.loading(rank)) {
      int64_t count = -hosts.held_count(rank);
      for (const v1::LayerExperts& layer : order.layers()) count += layer.experts_size();
      CHECK_GT(count, 0) << "rank " << rank << " loads nothing by order " << order.order();
      LogEvent(EventKind::kPlace, rank,
               absl::StrFormat("order %d: %d experts to load, %d held", order.order(), count,
                               hosts.held_count(rank)));
    }
    v1::ControlMessage message;
    *message.mutable_place_experts() = std::move(order);
    SendTo(rank, std::move(message));
  }
}

void World::Carry(const Ruling& ruling) {
  switch (ruling.kind) {
    case Ruling::Kind::kRevoke:
      return Lose(ruling.rank, EventKind::kRevoke, ruling.evidence, ruling.unexplained);
    case Ruling::Kind::kSuspect:
      return LogEvent(EventKind::kSuspect, ruling.rank,
                      absl::StrCat("not revoked, all is frozen: ", ruling.evidence));
    case Ruling::Kind::kLinkBroken:
      return LogEvent(EventKind::kLink, ruling.rank,
                      absl::StrCat("to rank ", ruling.other, " is broken: ", ruling.evidence));
    case Ruling::Kind::kLinkHealed:
      return LogEvent(EventKind::kLink, ruling.rank,
                      absl::StrCat("to rank ", ruling.other, " is up"));
    case Ruling::Kind::kMoveSequences:
      LogEvent(EventKind::kLink, ruling.rank,
               "its requests move: what it cannot reach has no replica");
      actions_.move.push_back(ruling.rank);
      return;
  }
}

absl::Status World::Drain(int rank, absl::Time now) {
  if (!IsMember(rank)) return absl::NotFoundError(absl::StrCat("there is no rank ", rank));
  if (drains_.draining(rank)) return absl::OkStatus();
  // An operator is told at once, rather than left with a drain that cannot end.
  RETURN_IF_ERROR(readiness_.CheckDispensable(rank));
  LogEvent(EventKind::kDrain, rank, "its experts and requests go elsewhere");
  drains_.Begin(rank, DrainState::kByOperator, now);
  // Ranks of an epoch keep their experts: they serve the others until all leave.
  if (group_) group_->hosts().SetLeaving(rank, true);
  PlanSoon();
  return absl::OkStatus();
}

absl::Status World::CancelDrain(int rank) {
  if (!IsMember(rank)) return absl::NotFoundError(absl::StrCat("there is no rank ", rank));
  if (!drains_.draining(rank)) {
    return absl::FailedPreconditionError(absl::StrCat("rank ", rank, " does not drain"));
  }
  if (!drains_.cancellable(rank)) {
    return absl::FailedPreconditionError(absl::StrCat("rank ", rank, " is ending already"));
  }
  LogEvent(EventKind::kDrain, rank, "cancelled");
  StopDraining(rank);
  return absl::OkStatus();
}

void World::NoteDraining(int rank, absl::Time now) {
  if (!IsMember(rank)) return;
  switch (drains_.state(rank)) {
    case DrainState::kNone:
      return drains_.Begin(rank, DrainState::kRequestedByWorker, now);
    case DrainState::kByOperator:
      // From now on losses do not take it back: the worker ends in any case.
      return drains_.Escalate(rank, DrainState::kRequestedByWorker);
    case DrainState::kRequestedByWorker:
    case DrainState::kMustEnd:
    case DrainState::kToldToEnd:
      return;
  }
}

void World::StopDraining(int rank) {
  drains_.Cancel(rank);
  if (group_) group_->hosts().SetLeaving(rank, false);
  PlanSoon();
}

void World::LogEndAllTheSame(int rank, const absl::Status& missed) {
  LogEvent(EventKind::kDrain, rank,
           absl::StrCat("it ends all the same: ", std::string(missed.message())));
}

void World::ReconsiderDrains() {
  for (const int rank : drains_.Cancellable()) {
    const absl::Status status = readiness_.CheckDispensable(rank);
    if (status.ok()) continue;
    // Its machine ends it soon. Waiting for what the others lack would only waste the time left.
    if (drains_.state(rank) == DrainState::kRequestedByWorker) {
      LogEndAllTheSame(rank, status);
      drains_.Escalate(rank, DrainState::kMustEnd);
    } else {
      LogEvent(EventKind::kDrain, rank,
               absl::StrCat("taken back: ", std::string(status.message())));
      StopDraining(rank);
    }
  }
}

void World::AdvanceDrains(absl::Time now, const std::map<int, int>& sequences) {
  // Experts of an epoch do not hold a drain up, as they cannot move.
  const Drains::Due due = drains_.Advance(now, [&](int rank) {
    const auto of_rank = sequences.find(rank);
    return Drains::Remainder{.sequences = of_rank == sequences.end() ? 0 : of_rank->second,
                             .experts = group_ && group_->hosts().held_count(rank) > 0};
  });
  for (const int rank : due.move) {
    // Where nobody else takes sequences, they go on here to their end.
    if (readiness_.CountRoutable(rank) > 0) actions_.move.push_back(rank);
  }
  for (const int rank : due.may_end) {
    v1::ControlMessage message;
    message.mutable_drain();
    SendTo(rank, std::move(message));
    LogEvent(EventKind::kDrain, rank, "nothing is left there; it may end");
  }
}

}  // namespace epic::coordinator
