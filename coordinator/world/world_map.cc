// The half of World that places experts, publishes the map, judges and drains.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/mutant.h"
#include "base/status.h"
#include "cluster/join_token.h"
#include "coordinator/world/world.h"

namespace epic::coordinator {

void World::TryStart(absl::Time now) {
  if (started_ || !hosts_ || hosts_->empty()) return;
  const bool attention = std::ranges::any_of(members_, [this](const auto& entry) {
    return mapped(entry.second) && entry.second.identity.attention();
  });
  if (!attention || hosts_->Shortfall() > 0) return;
  const int joined = static_cast<int>(members_.size());
  if (options_.expect_ranks > 0 ? joined < options_.expect_ranks
                                : now - last_join_at_ < options_.quiet) {
    return;
  }
  started_ = true;
  events_.Append("start", -1, 0,
                 absl::StrFormat("%d ranks, %d experts", joined, hosts_->shape().expert_total()));
  PlanUrgently();
}

void World::PlanUrgently() {
  if (planned_urgently_) return PlanSoon();
  planned_urgently_ = true;
  Replan();
}

void World::Replan() {
  if (!started_) return;
  plan_due_ = publish_due_ = false;
  const auto orders = hosts_->Plan(frozen_);
  // First the map without what an order drops.
  PublishMap();
  for (const auto& [rank, order] : orders) {
    v1::ControlMessage message;
    *message.mutable_place_experts() = order;
    Send(rank, std::move(message));
    if (!hosts_->loading(rank)) continue;
    int64_t count = -hosts_->held_count(rank);
    for (const v1::LayerExperts& layer : order.layers()) count += layer.experts_size();
    Say("place", rank,
        absl::StrFormat("order %d: %d experts to load, %d held", order.order(), count,
                        hosts_->held_count(rank)));
  }
}

cluster::ExpertMap World::NextMap() const {
  cluster::ExpertMap next{.version = map_.version, .replicas = hosts_->replicas()};
  for (const auto& [rank, member] : members_) {
    if (!mapped(member)) continue;
    const v1::WorkerIdentity& identity = member.identity;
    next.ranks.push_back({.rank = rank,
                          .generation = member.generation,
                          .attention = identity.attention(),
                          .experts = identity.experts(),
                          .host = identity.host(),
                          .run_dir = identity.run_dir(),
                          .address = identity.address()});
  }
  return next;
}

void World::PublishMap() {
  cluster::ExpertMap next = NextMap();
  // The first map is whole.
  if (map_.version.number == 0 && next.unhosted_count() > 0) return;
  const auto same = [](const cluster::RankEntry& a, const cluster::RankEntry& b) {
    return a.rank == b.rank && a.generation == b.generation;
  };
  if (map_.version.number > 0 && next.replicas == map_.replicas &&
      std::ranges::equal(next.ranks, map_.ranks, same)) {
    return;
  }
  next.version = {options_.term, map_.version.number + 1};
  map_ = std::move(next);
  for (const cluster::RankEntry& told : map_.ranks) {
    v1::ControlMessage message;
    *message.mutable_publish_map() = cluster::ToMessage(map_, told);
    for (v1::MapRank& entry : *message.mutable_publish_map()->mutable_ranks()) {
      if (entry.rank() != told.rank) entry.set_pair_key(PairKey(entry.rank(), told.rank));
    }
    Send(told.rank, std::move(message));
  }
  events_.Append("map", -1, 0,
                 absl::StrFormat("number %d: %d ranks, %d experts unhosted, %d on one rank alone",
                                 map_.version.number, map_.ranks.size(), map_.unhosted_count(),
                                 hosts_->unreplicated_count()));
}

const std::string& World::PairKey(int a, int b) {
  std::string& key = pair_keys_[std::minmax(a, b)];
  if (key.empty() && !options_.pair_secret.empty()) {
    key = cluster::PairKey(options_.pair_secret, options_.term, a, b);
  }
  return key;
}

void World::OnTime(absl::Time now, const std::map<int, int>& sequences) {
  planned_urgently_ = false;
  if (!started_) TryStart(now);
  if (plan_due_) {
    Replan();
  } else if (publish_due_) {
    publish_due_ = false;
    PublishMap();
  }
  JudgeLiveness(now);
  JudgeLinks(now);
  AdvanceDrains(now, sequences);
}

void World::JudgeLiveness(absl::Time now) {
  // Each loss may be the cause of other waits: the rest is judged the next time.
  const std::optional<Suspicion> suspicion = liveness_.Judge(now);
  if (!suspicion) return;
  // A verdict may be wrong, so it is no death that a request can be blamed for.
  const bool frozen = frozen_ && !EPIC_MUTANT("freezes_revoke");
  if (!frozen) return Lose(suspicion->rank, "revoke", suspicion->evidence, /*unexplained=*/false);
  const auto at = members_.find(suspicion->rank);
  if (at == members_.end() || std::exchange(at->second.suspected, true)) return;
  Say("suspect", suspicion->rank,
      absl::StrCat("not revoked, all is frozen: ", suspicion->evidence));
}

void World::Convict(absl::Time now) {
  if (frozen_) return;
  const auto verdict = links_.Judge(now);
  if (verdict) Lose(verdict->rank, "revoke", verdict->evidence, /*unexplained=*/verdict->witnessed);
}

void World::JudgeLinks(absl::Time now) {
  Convict(now);
  const std::vector<BrokenPair> pairs = links_.Pairs(now);
  std::set<std::pair<int, int>> broken;
  for (const BrokenPair& pair : pairs) broken.insert({pair.low, pair.high});
  for (auto& [rank, member] : members_) {
    const bool still = std::ranges::any_of(
        broken, [&, of = rank](const auto& pair) { return pair.first == of || pair.second == of; });
    if (!still) member.avoided.clear();
  }
  for (const auto& [low, high] : broken_links_) {
    if (broken.count({low, high}) == 0) Say("link", low, absl::StrCat("to rank ", high, " is up"));
  }
  std::erase_if(broken_links_, [&](const auto& pair) { return broken.count(pair) == 0; });
  for (const BrokenPair& pair : pairs) JudgePair(pair, now);
}

void World::JudgePair(const BrokenPair& pair, absl::Time now) {
  const auto low = members_.find(pair.low), high = members_.find(pair.high);
  if (low == members_.end() || high == members_.end() || !hosts_) return;
  if (broken_links_.insert({pair.low, pair.high}).second) {
    Say("link", pair.low, absl::StrCat("to rank ", pair.high, " is broken: ", pair.evidence));
  }
  // Whoever of the two computes sequences goes on if others hold what the other one holds.
  bool nowhere_to_go = false;
  for (const auto& [rank, other] : {std::pair{pair.low, pair.high}, {pair.high, pair.low}}) {
    Member& member = members_.at(rank);
    if (!member.identity.attention() || !hosts_->IsOnlyHolder(other)) continue;
    if (CountRoutable(rank) == 0) {
      nowhere_to_go = true;
      continue;
    }
    if (!member.avoided.empty()) continue;
    member.avoided = absl::StrCat("it cannot reach rank ", other);
    Say("link", rank, "its requests move: what it cannot reach has no replica");
    actions_.move.push_back(rank);
  }
  if (!nowhere_to_go || frozen_ || !links_.MayRevoke(now)) return;
  const bool high_is_younger = high->second.joined_at >= low->second.joined_at;
  links_.CountRevocation(now);
  Lose(high_is_younger ? pair.high : pair.low, "revoke", pair.evidence, /*unexplained=*/false);
}

absl::Status World::CheckDispensable(int rank) const {
  const Member& member = members_.at(rank);
  if (started_ && !member.whole && member.identity.experts() && hosts_->Shortfall(rank) > 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the other ranks lack %d slots for the %d experts of this model",
                        hosts_->Shortfall(rank), hosts_->shape().expert_total()));
  }
  // Not even one that is loading: there may be no other to come.
  if (member.identity.attention() && member.refusal.empty() && CountRoutable(rank) == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("no rank but rank ", rank, " takes requests"));
  }
  return absl::OkStatus();
}

absl::Status World::Drain(int rank, absl::Time now) {
  const auto at = members_.find(rank);
  if (at == members_.end()) return absl::NotFoundError(absl::StrCat("there is no rank ", rank));
  Member& member = at->second;
  if (member.draining) return absl::OkStatus();
  RETURN_IF_ERROR(CheckDispensable(rank));
  Say("drain", rank, "its experts and requests go elsewhere");
  StartDraining(member, now);
  if (hosts_) hosts_->SetLeaving(rank, true);
  PlanSoon();
  return absl::OkStatus();
}

absl::Status World::CancelDrain(int rank) {
  const auto at = members_.find(rank);
  if (at == members_.end()) return absl::NotFoundError(absl::StrCat("there is no rank ", rank));
  Member& member = at->second;
  if (!member.draining) {
    return absl::FailedPreconditionError(absl::StrCat("rank ", rank, " does not drain"));
  }
  if (member.told_to_drain || member.ends) {
    return absl::FailedPreconditionError(absl::StrCat("rank ", rank, " is ending already"));
  }
  Say("drain", rank, "cancelled");
  StopDraining(rank, member);
  return absl::OkStatus();
}

void World::NoteDraining(int rank, absl::Time now) {
  const auto at = members_.find(rank);
  if (at == members_.end()) return;
  at->second.of_itself = true;
  if (!at->second.draining) StartDraining(at->second, now);
}

void World::StartDraining(Member& member, absl::Time now) {
  member.draining = true;
  member.draining_since = now;
}

void World::StopDraining(int rank, Member& member) {
  member.draining = member.of_itself = false;
  if (hosts_) hosts_->SetLeaving(rank, false);
  PlanSoon();
}

void World::EndAllTheSame(int rank, const absl::Status& missed) {
  members_.at(rank).ends = true;
  Say("drain", rank, absl::StrCat("it ends all the same: ", std::string(missed.message())));
}

void World::ReconsiderDrains() {
  for (auto& [rank, member] : members_) {
    if (!member.draining || member.told_to_drain || member.ends) continue;
    const absl::Status status = CheckDispensable(rank);
    if (status.ok()) continue;
    if (member.of_itself) {
      EndAllTheSame(rank, status);
    } else {
      Say("drain", rank, absl::StrCat("taken back: ", std::string(status.message())));
      StopDraining(rank, member);
    }
  }
}

void World::AdvanceDrains(absl::Time now, const std::map<int, int>& sequences) {
  for (auto& [rank, member] : members_) {
    if (!member.draining || member.told_to_drain) continue;
    const auto of_rank = sequences.find(rank);
    const int left = of_rank == sequences.end() ? 0 : of_rank->second;
    if (left > 0) {
      const bool late = now - member.draining_since >= options_.drain_move_after;
      if (late && CountRoutable(rank) > 0) actions_.move.push_back(rank);
      continue;
    }
    if (!member.ends && hosts_ && hosts_->held_count(rank) > 0) continue;
    member.told_to_drain = true;
    v1::ControlMessage message;
    message.mutable_drain();
    Send(rank, std::move(message));
    Say("drain", rank, "nothing is left there; it may end");
  }
}

}  // namespace epic::coordinator
