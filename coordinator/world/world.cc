#include "coordinator/world/world.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "base/status.h"

namespace epic::coordinator {
namespace {

// Beyond any real model or machine.
constexpr int kLayersMax = 10'000;
constexpr int kExpertsMax = 100'000;
constexpr int kEpochRanksMax = 4096;

ModelShape ShapeOf(const v1::WorkerIdentity& identity) {
  return {.layer_count = identity.layer_count(),
          .first_expert_layer = identity.first_expert_layer(),
          .expert_count = identity.expert_count()};
}

std::string RolesOf(const v1::WorkerIdentity& identity) {
  if (identity.attention() && identity.experts()) return "attention and experts";
  return identity.attention() ? "attention" : "experts";
}

absl::Status CheckShape(const ModelShape& shape) {
  if (shape.layer_count < 1 || shape.layer_count > kLayersMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer_count: ", shape.layer_count, ", 1 to ", kLayersMax, " are possible"));
  }
  if (shape.first_expert_layer < 0 || shape.first_expert_layer > shape.layer_count) {
    return absl::InvalidArgumentError(absl::StrCat("first_expert_layer: ", shape.first_expert_layer,
                                                   " of ", shape.layer_count, " layers"));
  }
  if (shape.expert_count < 1 || shape.expert_count > kExpertsMax) {
    return absl::InvalidArgumentError(absl::StrCat("expert_count: ", shape.expert_count, ", 1 to ",
                                                   kExpertsMax, " are possible"));
  }
  return absl::OkStatus();
}

}  // namespace

World::World(WorldOptions options, EventLog& events)
    : options_(std::move(options)),
      events_(events),
      liveness_(options_.liveness),
      links_(options_.link_settle) {}

absl::StatusOr<int> World::Join(const v1::ControlHello& hello, absl::Time now) {
  Member member{.generation = hello.generation(), .identity = hello.worker(), .joined_at = now};
  if (!hello.has_worker()) {
    member.identity.set_attention(true);
    member.identity.set_experts(true);
  }
  const v1::WorkerIdentity& identity = member.identity;
  member.whole = identity.attention() && identity.experts() && identity.address().empty();
  absl::Status status = CheckIdentity(identity);
  if (status.ok()) status = CheckClass(identity.profile(), identity.checkpoint());
  if (!status.ok()) {
    events_.Append("refuse", -1, hello.generation(), std::string(status.message()));
    return status;
  }
  const int rank = next_rank_++;
  members_[rank] = member;
  last_join_at_ = now;
  Say("join", rank,
      absl::StrCat(RolesOf(identity), identity.host().empty() ? "" : " on ", identity.host(),
                   member.whole ? ", whole" : ""));
  if (hello.has_worker()) {
    v1::ControlMessage welcome;
    welcome.mutable_welcome()->set_rank(rank);
    Send(rank, std::move(welcome));
    // A whole rank waits for nobody that the coordinator knows, and reports nothing.
    if (!member.whole) liveness_.Expect(rank, now);
  }
  if (identity.epoch_ranks() > 0) JoinEpoch(rank);
  if (member.whole) return rank;
  if (!hosts_) hosts_.emplace(ShapeOf(identity), options_.replicas_max);
  if (identity.experts()) {
    hosts_->Join(rank, identity.expert_slots(), identity.host());
    hosts_->AllowMoves();
  }
  TryStart(now);
  PlanSoon();
  return rank;
}

absl::Status World::CheckIdentity(const v1::WorkerIdentity& identity) const {
  if (!identity.attention() && !identity.experts()) {
    return absl::InvalidArgumentError("roles: a worker has neither attention nor experts");
  }
  if (identity.epoch_ranks() < 0 || identity.epoch_ranks() > kEpochRanksMax) {
    return absl::InvalidArgumentError(absl::StrCat("epoch_ranks: ", identity.epoch_ranks(),
                                                   ", 0 to ", kEpochRanksMax, " are possible"));
  }
  if (identity.attention() && identity.experts() && identity.address().empty()) {
    return absl::OkStatus();
  }
  if (identity.address().empty()) {
    return absl::InvalidArgumentError(
        "address: a worker that has one role alone must listen for the others");
  }
  const ModelShape shape = ShapeOf(identity);
  RETURN_IF_ERROR(CheckShape(shape));
  if (identity.expert_slots() < 0) {
    return absl::InvalidArgumentError(absl::StrCat("expert_slots: ", identity.expert_slots()));
  }
  if (hosts_ && !(hosts_->shape() == shape)) {
    const ModelShape& ours = hosts_->shape();
    return absl::FailedPreconditionError(absl::StrFormat(
        "the worker's model has layers %d to %d with %d experts, this world's %d to %d with %d",
        shape.first_expert_layer, shape.layer_count, shape.expert_count, ours.first_expert_layer,
        ours.layer_count, ours.expert_count));
  }
  return absl::OkStatus();
}

absl::Status World::CheckClass(const std::string& profile, const std::string& checkpoint) {
  if (profile_.empty()) {
    profile_ = profile;
    checkpoint_ = checkpoint;
    return absl::OkStatus();
  }
  if (profile.empty() || (profile == profile_ && checkpoint == checkpoint_)) {
    return absl::OkStatus();
  }
  // Other bits would come out of it in the middle of an answer.
  return absl::FailedPreconditionError(absl::StrCat("the worker has profile ", profile,
                                                    " and checkpoint ", checkpoint, ", this world ",
                                                    profile_, " and ", checkpoint_));
}

void World::OnMessage(int rank, const v1::ControlMessage& message, absl::Time now) {
  const auto at = members_.find(rank);
  if (at == members_.end()) return;
  Member& member = at->second;
  switch (message.body_case()) {
    case v1::ControlMessage::kReady:
      return OnReady(rank, message.ready());
    case v1::ControlMessage::kLoadProgress:
      member.load = message.load_progress();
      return;
    case v1::ControlMessage::kRankReport:
      member.report = message.rank_report();
      if (!member.refusal.empty()) return;
      return liveness_.Report(rank, message.rank_report(), now);
    case v1::ControlMessage::kExpertsReady:
      return OnExpertsReady(rank, message.experts_ready());
    case v1::ControlMessage::kExpertsFailed:
      Say("experts failed", rank, message.experts_failed().message());
      if (hosts_) hosts_->OnFailed(rank, message.experts_failed().order());
      return PlanSoon();
    case v1::ControlMessage::kLinkDown:
    case v1::ControlMessage::kLinkUp:
      return OnLink(rank, message, now);
    case v1::ControlMessage::kDrain:
      if (const absl::Status status = Drain(rank, now); !status.ok()) EndAllTheSame(rank, status);
      return NoteDraining(rank, now);
    case v1::ControlMessage::kEpochId:
      return OnEpochId(rank, message.epoch_id());
    case v1::ControlMessage::kEndEpoch:
      if (member.identity.epoch() == 0) return;
      return Lose(rank, "revoke", message.end_epoch().reason(), !member.draining);
    case v1::ControlMessage::kGoodbye:
      return Lose(rank, "goodbye", "it has drained", /*unexplained=*/false);
    default:
      LOG_WARNING("rank {} sent a message of kind {}, which is unknown here", rank,
                  static_cast<int>(message.body_case()));
  }
}

void World::OnReady(int rank, const v1::WorkerReady& ready) {
  Member& member = members_.at(rank);
  if (!member.identity.attention()) {
    return Refuse(rank, "it says that it takes sequences and has not the role for it");
  }
  if (absl::Status status = CheckClass(ready.profile(), ready.checkpoint()); !status.ok()) {
    return Refuse(rank, std::string(status.message()));
  }
  member.ready = ready;
  member.load.set_loaded_bytes(member.load.total_bytes());
  Say("ready", rank, absl::StrCat(ready.description(), ", profile ", ready.profile()));
}

void World::OnExpertsReady(int rank, const v1::ExpertsReady& ready) {
  if (!hosts_) return;
  const int64_t unhosted_before = hosts_->unhosted_count();
  if (absl::Status status = hosts_->OnReady(rank, ready); !status.ok()) {
    return Refuse(rank, std::string(status.message()));
  }
  Say("experts ready", rank,
      absl::StrFormat("%d held, %d MiB loaded in %.2f s", hosts_->held_count(rank),
                      ready.loaded_bytes() >> 20, ready.load_seconds()));
  const int64_t unhosted = hosts_->unhosted_count();
  if (unhosted == 0 && unhosted_before > 0) return Replan();  // requests wait for it
  // While others load what is urgent, nothing else is planned.
  (unhosted > 0 && !hosts_->loading_ranks().empty() ? publish_due_ : plan_due_) = true;
}

void World::JoinEpoch(int rank) {
  const v1::WorkerIdentity& identity = members_.at(rank).identity;
  const std::optional<Epochs::Formed> formed =
      epochs_.Join(rank, identity.epoch_ranks(), identity.epoch_place() - 1);
  if (!formed) return;
  for (const int member : formed->ranks) members_.at(member).identity.set_epoch(formed->epoch);
  Say("epoch", rank,
      absl::StrCat("number ", formed->epoch, ": ranks ", absl::StrJoin(formed->ranks, ", ")));
  v1::ControlMessage message;
  *message.mutable_join_epoch() = epochs_.Invitation(formed->ranks[0], "");
  Send(formed->ranks[0], std::move(message));
}

void World::OnEpochId(int rank, const v1::EpochId& id) {
  const std::vector<int> ranks = epochs_.TakeId(rank, id);
  for (const int member : ranks) {
    v1::ControlMessage message;
    *message.mutable_join_epoch() = epochs_.Invitation(member, id.unique_id());
    Send(member, std::move(message));
  }
}

void World::OnLink(int rank, const v1::ControlMessage& message, absl::Time now) {
  if (message.has_link_up()) return links_.Withdraw(rank, message.link_up().rank());
  const v1::LinkDown& down = message.link_down();
  const auto peer = members_.find(down.rank());
  // Of one that is gone already, or of an earlier life.
  if (peer == members_.end() || peer->second.generation != down.generation()) return;
  if (down.rank() == rank) return;
  links_.Accuse(rank, down.rank(), down.evidence(), now);
  Convict(now);
}

void World::Refuse(int rank, const std::string& why) {
  Member& member = members_.at(rank);
  member.refusal = why;
  LOG_ERROR("rank {} is refused: {}", rank, why);
  Say("refuse", rank, why);
  liveness_.Forget(rank);
  links_.Forget(rank);
  if (hosts_) hosts_->Leave(rank);
  actions_.move.push_back(rank);
  ReconsiderDrains();
  PlanUrgently();
}

void World::OnClosed(int rank, const absl::Status& why, absl::Time now) {
  const auto at = members_.find(rank);
  if (at == members_.end()) return;
  if (at->second.told_to_drain) {
    return Lose(rank, "goodbye", "it has drained", /*unexplained=*/false);
  }
  const bool explained = at->second.draining || !at->second.refusal.empty();
  Lose(rank, "lost", std::string(why.message()), !explained);
}

void World::Lose(int rank, const std::string& kind, const std::string& why, bool unexplained) {
  const std::vector<int> ranks = kind == "goodbye" ? std::vector{rank} : Together(rank);
  Remove(rank, kind, why);
  for (const int other : ranks) {
    if (other == rank) continue;
    Remove(other, "revoke", absl::StrCat("its epoch has ended with rank ", rank, ": ", why));
  }
  actions_.lost.push_back({ranks, why, unexplained});
  ReconsiderDrains();
  PlanUrgently();
}

void World::Remove(int rank, const std::string& kind, const std::string& why) {
  Say(kind, rank, why);
  if (kind == "revoke") {
    v1::ControlMessage message;
    message.mutable_revoked()->set_reason(why);
    Send(rank, std::move(message));
  }
  members_.erase(rank);
  epochs_.Leave(rank);
  liveness_.Forget(rank);
  links_.Forget(rank);
  std::erase_if(broken_links_,
                [rank](const auto& pair) { return pair.first == rank || pair.second == rank; });
  std::erase_if(pair_keys_, [rank](const auto& entry) {
    return entry.first.first == rank || entry.first.second == rank;
  });
  if (hosts_) hosts_->Leave(rank);
}

absl::Status World::Fence(int rank, absl::Time now) {
  if (members_.count(rank) == 0) {
    return absl::NotFoundError(absl::StrCat("there is no rank ", rank));
  }
  Lose(rank, "revoke", "an operator fenced it", /*unexplained=*/false);
  return absl::OkStatus();
}

void World::Freeze(bool frozen) {
  if (frozen_ == frozen) return;
  frozen_ = frozen;
  events_.Append("freeze", -1, 0, frozen ? "on" : "off");
  for (auto& [rank, member] : members_) member.suspected = false;
  PlanSoon();
}

WorldActions World::Take() { return std::exchange(actions_, {}); }

bool World::Routable(int rank) const {
  const auto at = members_.find(rank);
  if (at == members_.end()) return false;
  const Member& member = at->second;
  if (!member.ready || !member.refusal.empty() || member.draining || !member.avoided.empty()) {
    return false;
  }
  return member.whole || map_.Find(rank) != nullptr;
}

std::vector<int> World::Together(int rank) const {
  const auto at = members_.find(rank);
  if (at == members_.end()) return {};
  const uint64_t epoch = at->second.identity.epoch();
  if (epoch == 0) return {rank};
  std::vector<int> ranks;
  for (const auto& [other, member] : members_) {
    if (member.identity.epoch() == epoch) ranks.push_back(other);
  }
  return ranks;
}

int World::CountRoutable(int without) const {
  int count = 0;
  for (const auto& [rank, member] : members_) count += rank != without && Routable(rank) ? 1 : 0;
  return count;
}

std::string World::State(int rank) const {
  const Member& member = members_.at(rank);
  if (!member.refusal.empty()) return "refused";
  if (member.draining) return "draining";
  if (member.identity.attention() && !member.ready) return "loading";
  const bool placed = member.whole || (map_.Find(rank) != nullptr && !hosts_->loading(rank));
  return placed ? "ready" : "loading";
}

absl::Status World::Ready() const {
  RETURN_IF_ERROR(ReadySoon());
  const bool whole = std::ranges::any_of(
      members_, [this](const auto& entry) { return entry.second.whole && Routable(entry.first); });
  if (whole || !hosts_) return absl::OkStatus();
  const int64_t unhosted = hosts_->unhosted_count();
  if (unhosted == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrFormat("%d of %d experts unhosted; ranks %s load them",
                                                unhosted, hosts_->shape().expert_total(),
                                                absl::StrJoin(hosts_->loading_ranks(), ", ")));
}

absl::Status World::ReadySoon() const {
  for (const auto& [rank, member] : members_) {
    if (member.whole && Routable(rank)) return absl::OkStatus();
  }
  if (hosts_ && started_ && CountRoutable(-1) > 0) {
    const bool planned = plan_due_ && hosts_->Shortfall() <= 0;
    if (hosts_->unhosted_count() == 0 || !hosts_->loading_ranks().empty() || planned) {
      return absl::OkStatus();
    }
    return absl::UnavailableError(absl::StrFormat(
        "%d of %d experts unhosted, and %d slots are missing", hosts_->unhosted_count(),
        hosts_->shape().expert_total(), std::max<int64_t>(0, hosts_->Shortfall())));
  }
  return absl::UnavailableError(WaitingFor());
}

std::string World::WaitingFor() const {
  const int joined = static_cast<int>(members_.size());
  if (joined < options_.expect_ranks && !started_) {
    return absl::StrCat("waiting for ranks: ", joined, " of ", options_.expect_ranks);
  }
  if (members_.empty()) return "no worker";
  const bool mapped_only =
      std::ranges::none_of(members_, [](const auto& entry) { return entry.second.whole; });
  const auto none_has = [&](bool (v1::WorkerIdentity::*role)() const) {
    return std::ranges::none_of(members_, [&](const auto& entry) {
      return entry.second.refusal.empty() && (entry.second.identity.*role)();
    });
  };
  if (mapped_only && hosts_) {
    if (none_has(&v1::WorkerIdentity::attention)) return "no rank has the role attention";
    if (none_has(&v1::WorkerIdentity::experts)) return "no rank has the role experts";
    if (const int64_t missing = hosts_->Shortfall(); missing > 0) {
      return absl::StrFormat("%d experts need a slot each, and %d slots are missing",
                             hosts_->shape().expert_total(), missing);
    }
    if (!started_) return "waiting for more ranks to join";
    if (map_.version.number == 0) {
      return absl::StrFormat("%d of %d experts unhosted; ranks %s load them",
                             hosts_->unhosted_count(), hosts_->shape().expert_total(),
                             absl::StrJoin(hosts_->loading_ranks(), ", "));
    }
  }
  std::vector<std::string> reasons;
  for (const auto& [rank, member] : members_) {
    if (!member.identity.attention()) continue;
    std::string why = !member.avoided.empty() ? member.avoided : State(rank);
    if (member.identity.epoch_ranks() > 0 && member.identity.epoch() == 0) {
      why = absl::StrCat("waits for an epoch of ", member.identity.epoch_ranks(), " ranks");
    }
    if (why == "loading" && member.load.total_bytes() > 0) {
      const double part = static_cast<double>(member.load.loaded_bytes()) /
                          static_cast<double>(member.load.total_bytes());
      why = absl::StrFormat("loading %d %%", static_cast<int>(part * 100 + 1e-6));
    }
    reasons.push_back(members_.size() == 1 ? why : absl::StrCat("rank ", rank, ": ", why));
  }
  return absl::StrJoin(reasons, "; ");
}

void World::Say(const std::string& kind, int rank, std::string text) {
  const auto at = members_.find(rank);
  events_.Append(kind, rank, at == members_.end() ? 0 : at->second.generation, std::move(text));
}

void World::Send(int rank, v1::ControlMessage message) {
  actions_.messages.emplace_back(rank, std::move(message));
}

}  // namespace epic::coordinator
