#include "coordinator/world/expert_group.h"

#include <algorithm>

#include "base/check.h"

namespace epic::coordinator {

void ExpertGroup::Join(int rank, const Member& member) {
  const v1::WorkerIdentity& identity = member.identity;
  cluster::RankEntry entry{{.rank = rank,
                            .generation = member.generation,
                            .host = identity.host(),
                            .run_dir = identity.run_dir(),
                            .address = identity.address()},
                           identity.attention(),
                           identity.experts()};
  CHECK(ranks_.emplace(rank, std::move(entry)).second) << "rank " << rank << " is in the group";
  if (!identity.experts()) return;
  hosts_.Join(rank, identity.expert_slots(), identity.host(), identity.held_experts());
  // The new rank makes the rest uneven.
  hosts_.AllowMoves();
}

void ExpertGroup::Remove(int rank) {
  // What it held is held no more, and its keys are of no use to anybody else.
  ranks_.erase(rank);
  hosts_.Leave(rank);
  publisher_.Forget(rank);
}

bool ExpertGroup::has_attention() const {
  return std::ranges::any_of(ranks_, [](const auto& entry) { return entry.second.attention; });
}

std::vector<cluster::RankEntry> ExpertGroup::Entries() const {
  std::vector<cluster::RankEntry> entries;
  entries.reserve(ranks_.size());
  for (const auto& [rank, entry] : ranks_) entries.push_back(entry);
  return entries;
}

void ExpertGroup::Start() {
  CHECK(!started_) << "a group starts once";
  CHECK_LE(hosts_.Shortfall(), 0);
  started_ = true;
}

void ExpertGroup::PublishSoon() {
  if (due_ == Due::kNothing) due_ = Due::kMap;
}

Placement ExpertGroup::Plan(bool frozen) {
  if (!started_) return {};
  // A plan covers everything that made one due, and a map is a part of it.
  due_ = Due::kNothing;
  Placement placement;
  placement.orders = hosts_.Plan(frozen);
  // The plan has already taken from `replicas` what its orders drop.
  placement.maps = publisher_.Publish(Entries(), hosts_.replicas());
  return placement;
}

Placement ExpertGroup::PlanUrgently(bool frozen) {
  // Hundreds of ranks may be lost in one period, and each plan tells all that are left.
  if (planned_urgently_) {
    PlanSoon();
    return {};
  }
  planned_urgently_ = true;
  return Plan(frozen);
}

Placement ExpertGroup::OnTime(bool frozen) {
  planned_urgently_ = false;
  if (due_ == Due::kPlan) return Plan(frozen);
  if (due_ == Due::kNothing) return {};
  due_ = Due::kNothing;
  Placement placement;
  placement.maps = publisher_.Publish(Entries(), hosts_.replicas());
  return placement;
}

Placement ExpertGroup::PlanPromised() {
  Start();
  Placement placement;
  // Homes alone: replicas can follow while the ranks serve.
  placement.orders = hosts_.Plan(/*frozen=*/true);
  placement.maps = publisher_.Publish(Entries(), hosts_.ordered_replicas());
  CHECK(placement.maps.has_value()) << "the first map is not complete";
  // Replicas follow once all homes are held, without a further event if they are already.
  if (hosts_.unhosted_count() == 0) PlanSoon();
  return placement;
}

}  // namespace epic::coordinator
