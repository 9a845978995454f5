#include "coordinator/world/world.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status.h"

namespace epic::coordinator {
namespace {

std::string RolesOf(const v1::WorkerIdentity& identity) {
  if (identity.attention() && identity.experts()) return "attention and experts";
  return identity.attention() ? "attention" : "experts";
}

}  // namespace

World::World(WorldOptions options, EventLog& events)
    : options_(std::move(options)),
      events_(events),
      start_rule_{.expect_ranks = options_.expect_ranks, .quiet = options_.quiet},
      epochs_(options_.term, options_.replicas_max, proofs_),
      verdicts_(options_.liveness, options_.link_settle),
      drains_(options_.drain_move_after),
      readiness_(members_, drains_, verdicts_, group_, options_.expect_ranks) {}

absl::StatusOr<int> World::Join(const v1::ControlHello& hello, absl::Time now) {
  // A refused worker leaves no trace but an event: it may try again with other flags.
  const absl::StatusOr<int> joined = members_.Join(hello, now);
  if (!joined.ok()) {
    events_.Append(EventKind::kRefuse, -1, hello.generation(),
                   std::string(joined.status().message()));
    return joined.status();
  }
  const int rank = *joined;
  const Member& member = members_.at(rank);
  const v1::WorkerIdentity& identity = member.identity;
  LogEvent(EventKind::kJoin, rank,
           absl::StrCat(RolesOf(identity),
                        identity.host().empty() ? "" : " on ", identity.host(),
                        member.holds_all_experts() ? ", with all experts" : ""));
  // A worker that says nothing of itself expects no welcome. For others the welcome comes before
  // all orders and maps, which refer to the rank that it tells.
  if (hello.has_worker()) Welcome(rank, member, now);
  if (member.steps_in_epoch()) JoinEpoch(rank, member);
  if (member.exchanges_messages()) JoinGroup(rank, member, now);
  return rank;
}

void World::JoinGroup(int rank, const Member& member, absl::Time now) {
  if (!group_) {
    group_.emplace(*members_.shape(), options_.replicas_max, proofs_,
                   MapPublisherOptions{.term = options_.term, .pair_secret = options_.pair_secret});
  }
  group_->Join(rank, member);
  // The rank may be the one that the world waited for. If not, it takes its share soon.
  StartIfComplete(now);
  PlanSoon();
}

ExpertGroup* World::GroupOf(int rank) {
  if (members_.at(rank).exchanges_messages()) return group_ ? &*group_ : nullptr;
  Epoch* const epoch = epochs_.Find(rank);
  return epoch != nullptr ? &epoch->group : nullptr;
}

void World::Welcome(int rank, const Member& member, absl::Time now) {
  v1::ControlMessage welcome;
  welcome.mutable_welcome()->set_rank(rank);
  SendTo(rank, std::move(welcome));
  // A rank that holds all experts waits for no other rank, and need not report.
  if (!member.holds_all_experts()) verdicts_.liveness().Expect(rank, now);
}

void World::OnMessage(int rank, const v1::ControlMessage& message, absl::Time now) {
  Member* const member = members_.Find(rank);
  if (member == nullptr) return;  // lost already, and its last messages come late
  switch (message.body_case()) {
    case v1::ControlMessage::kReady:
      return OnReady(rank, message.ready());
    case v1::ControlMessage::kLoadProgress:
      member->load = message.load_progress();
      return;
    case v1::ControlMessage::kRankReport:
      member->report = message.rank_report();
      if (!member->refusal.empty()) return;
      return verdicts_.liveness().Report(rank, message.rank_report(), now);
    case v1::ControlMessage::kExpertsReady:
      return OnExpertsReady(rank, message.experts_ready());
    case v1::ControlMessage::kExpertsFailed:
      return OnExpertsFailed(rank, message.experts_failed());
    case v1::ControlMessage::kLinkDown:
    case v1::ControlMessage::kLinkUp:
      return OnLinkMessage(rank, message, now);
    case v1::ControlMessage::kDrain:
      return OnDrainRequest(rank, now);
    case v1::ControlMessage::kEpochId:
      return Invite(epochs_.TakeId(rank, message.epoch_id()));
    case v1::ControlMessage::kEndEpoch:
      if (member->identity.epoch() == 0) return;
      // A rank that drains ends its epoch on purpose, so no request is to blame.
      return Lose(rank, EventKind::kRevoke, message.end_epoch().reason(), !drains_.draining(rank));
    case v1::ControlMessage::kGoodbye:
      return Lose(rank, EventKind::kGoodbye, "it has drained", /*unexplained=*/false);
    default:
      LOG_WARNING("rank {} sent a message of kind {}, which is unknown here", rank,
                  static_cast<int>(message.body_case()));
  }
}

void World::OnReady(int rank, const v1::WorkerReady& ready) {
  Member& member = members_.at(rank);
  // A worker that contradicts its own hello is not to be trusted with sequences.
  if (!member.identity.attention()) {
    return Refuse(rank, "it says that it takes sequences and has not the role for it");
  }
  if (absl::Status status = members_.CheckClass(ready.profile(), ready.checkpoint());
      !status.ok()) {
    return Refuse(rank, std::string(status.message()));
  }
  member.ready = ready;
  // Progress comes in steps; what is ready is loaded in full.
  member.load.set_loaded_bytes(member.load.total_bytes());
  LogEvent(EventKind::kReady, rank,
           absl::StrCat(ready.description(), ", profile ", ready.profile()));
}

void World::OnExpertsReady(int rank, const v1::ExpertsReady& ready) {
  ExpertGroup* const group = GroupOf(rank);
  if (group == nullptr) return;
  ExpertHosts& hosts = group->hosts();
  const int64_t unhosted_before = hosts.unhosted_count();
  if (absl::Status status = hosts.OnReady(rank, ready); !status.ok()) {
    // The ranks of an epoch compute with what each of them has loaded, so it cannot go on.
    if (members_.at(rank).steps_in_epoch()) {
      return Lose(rank, EventKind::kRevoke, std::string(status.message()), /*unexplained=*/false);
    }
    return Refuse(rank, std::string(status.message()));
  }
  LogEvent(EventKind::kExpertsReady, rank,
           absl::StrFormat("%d held, %d MiB loaded in %.2f s", hosts.held_count(rank),
                           ready.loaded_bytes() >> 20, ready.load_seconds()));
  const int64_t unhosted = hosts.unhosted_count();
  // Requests wait for the last expert that nobody held.
  if (unhosted == 0 && unhosted_before > 0) return Tell(*group, group->Plan(frozen()));
  // While others load what is urgent, nothing else is planned.
  unhosted > 0 && !hosts.loading_ranks().empty() ? group->PublishSoon() : group->PlanSoon();
}

void World::OnExpertsFailed(int rank, const v1::ExpertsFailed& failed) {
  LogEvent(EventKind::kExpertsFailed, rank, failed.message());
  ExpertGroup* const group = GroupOf(rank);
  if (group == nullptr) return;
  group->hosts().OnFailed(rank, failed.order());
  group->PlanSoon();
}

void World::JoinEpoch(int rank, const Member& member) {
  const absl::StatusOr<Epoch*> joined = epochs_.Join(rank, member);
  if (!joined.ok()) return Refuse(rank, std::string(joined.status().message()));
  // Null: others are still missing.
  const Epoch* const epoch = *joined;
  if (epoch == nullptr) return;
  // From now on they are lost together.
  for (const int each : epoch->ranks) members_.at(each).identity.set_epoch(epoch->number);
  LogEvent(EventKind::kEpoch, rank,
           absl::StrCat("number ", epoch->number, ": ranks ", absl::StrJoin(epoch->ranks, ", ")));
  Invite(epochs_.FirstInvitations(*epoch));
}

void World::Invite(const Epochs::Invitations& invitations) {
  for (const auto& [rank, invitation] : invitations) {
    v1::ControlMessage message;
    *message.mutable_join_epoch() = invitation;
    SendTo(rank, std::move(message));
  }
}

void World::OnLinkMessage(int rank, const v1::ControlMessage& message, absl::Time now) {
  if (message.has_link_up()) return verdicts_.links().Withdraw(rank, message.link_up().rank());
  const v1::LinkDown& down = message.link_down();
  const Member* const peer = members_.Find(down.rank());
  // The peer may be gone already, or the accusation is about an earlier life of it.
  if (peer == nullptr || peer->generation != down.generation()) return;
  if (down.rank() == rank) return;
  verdicts_.links().Accuse(rank, down.rank(), down.evidence(), now);
  if (const auto ruling = verdicts_.JudgeAccusations(now)) Carry(*ruling);
}

void World::OnDrainRequest(int rank, absl::Time now) {
  // A worker that was told to end by its machine cannot be kept, so the request is never refused.
  if (const absl::Status status = Drain(rank, now); !status.ok()) {
    LogEndAllTheSame(rank, status);
    drains_.Begin(rank, DrainState::kMustEnd, now);
  }
  NoteDraining(rank, now);
}

void World::OnClosed(int rank, const absl::Status& why, absl::Time now) {
  const Member* const member = members_.Find(rank);
  if (member == nullptr) return;
  if (drains_.state(rank) == DrainState::kToldToEnd) {
    return Lose(rank, EventKind::kGoodbye, "it has drained", /*unexplained=*/false);
  }
  // A rank that was to end, or was refused, takes no request with it.
  const bool explained = drains_.draining(rank) || !member->refusal.empty();
  Lose(rank, EventKind::kLost, std::string(why.message()), !explained);
}

void World::OnTime(absl::Time now, const std::map<int, int>& sequences) {
  if (group_) Tell(*group_, group_->OnTime(frozen()));
  for (auto& [number, epoch] : epochs_.formed()) Tell(epoch.group, epoch.group.OnTime(frozen()));
  StartIfComplete(now);
  if (const auto ruling = verdicts_.JudgeProgress(now)) Carry(*ruling);
  if (const auto ruling = verdicts_.JudgeAccusations(now)) Carry(*ruling);
  // Last: what the rulings before have revoked is not broken any more.
  for (const Ruling& ruling : verdicts_.JudgeBrokenLinks(now, *this)) Carry(ruling);
  AdvanceDrains(now, sequences);
}

void World::Refuse(int rank, const std::string& why) {
  members_.at(rank).refusal = why;
  LOG_ERROR("rank {} is refused: {}", rank, why);
  LogEvent(EventKind::kRefuse, rank, why);
  // It may go on reporting, but nothing of that concerns the others.
  verdicts_.Disregard(rank);
  if (group_) group_->Remove(rank);
  actions_.move.push_back(rank);
  ReconsiderDrains();
  PlanUrgently();
}

void World::Lose(int rank, EventKind kind, const std::string& why, bool unexplained) {
  const bool alone = kind == EventKind::kGoodbye;
  const std::vector<int> ranks = alone ? std::vector{rank} : RanksLostTogether(rank);
  CHECK(!ranks.empty()) << "rank " << rank << " is lost already";
  Remove(rank, kind, why);
  for (const int other : ranks) {
    if (other == rank) continue;
    Remove(other, EventKind::kRevoke,
           absl::StrCat("its epoch has ended with rank ", rank, ": ", why));
  }
  actions_.lost.push_back({ranks, why, unexplained});
  // Drains first: a plan must know whose slots count.
  ReconsiderDrains();
  PlanUrgently();
}

void World::Remove(int rank, EventKind kind, const std::string& why) {
  LogEvent(kind, rank, why);
  // A rank that lives must hear why; one that is gone does not listen.
  if (kind == EventKind::kRevoke) {
    v1::ControlMessage message;
    message.mutable_revoked()->set_reason(why);
    SendTo(rank, std::move(message));
  }
  members_.Remove(rank);
  // Each part forgets the rank by itself; none may ask another about it any more.
  epochs_.Leave(rank);
  drains_.Forget(rank);
  verdicts_.Forget(rank);
  if (group_) group_->Remove(rank);
}

absl::Status World::Fence(int rank, absl::Time now) {
  if (!IsMember(rank)) return absl::NotFoundError(absl::StrCat("there is no rank ", rank));
  // A fence is no death that a request can be blamed for (protocol.md 5.4).
  Lose(rank, EventKind::kRevoke, "an operator fenced it", /*unexplained=*/false);
  return absl::OkStatus();
}

void World::Freeze(bool frozen) {
  if (verdicts_.frozen() == frozen) return;
  verdicts_.Freeze(frozen);
  events_.Append(EventKind::kFreeze, -1, 0, frozen ? "on" : "off");
  PlanSoon();
  // What the freeze has held back is planned now, in both kinds of groups.
  for (auto& [number, epoch] : epochs_.formed()) epoch.group.PlanSoon();
}

const cluster::ExpertMap& World::map() const {
  static const cluster::ExpertMap kNone;
  return group_ ? group_->map() : kNone;
}

int64_t World::CountExpertsHeld(int rank) const {
  const Epoch* const epoch = epochs_.Find(rank);
  if (epoch != nullptr) return epoch->group.hosts().held_count(rank);
  return group_ ? group_->hosts().held_count(rank) : 0;
}

std::optional<World::ExpertTotals> World::CountExperts() const {
  std::optional<ExpertTotals> best;
  const auto count = [&](const ExpertHosts& hosts) {
    // Requests go to the group that can serve them.
    if (best && best->unhosted <= hosts.unhosted_count()) return;
    best = {.experts = hosts.shape().expert_total(),
            .unhosted = hosts.unhosted_count(),
            .unreplicated = hosts.unreplicated_count()};
  };
  if (group_) count(group_->hosts());
  for (const auto& [number, epoch] : epochs_.formed()) count(epoch.group.hosts());
  return best;
}

bool World::Needs(int rank, int other) const {
  const Member& member = members_.at(rank);
  return member.exchanges_messages() && member.identity.attention() && group_ &&
         group_->hosts().IsOnlyHolder(other);
}

void World::LogEvent(EventKind kind, int rank, std::string text) {
  const Member* const member = members_.Find(rank);
  events_.Append(kind, rank, member == nullptr ? 0 : member->generation, std::move(text));
}

void World::SendTo(int rank, v1::ControlMessage message) {
  actions_.messages.emplace_back(rank, std::move(message));
}

}  // namespace epic::coordinator
