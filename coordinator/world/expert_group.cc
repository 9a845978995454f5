#include "coordinator/world/expert_group.h"

#include "base/check.h"

namespace epic::coordinator {

void ExpertGroup::Start() {
  CHECK(!started_) << "a group starts once";
  CHECK_LE(hosts_.Shortfall(), 0);
  started_ = true;
}

void ExpertGroup::PublishSoon() {
  if (due_ == Due::kNothing) due_ = Due::kMap;
}

Placement ExpertGroup::Plan(std::vector<cluster::RankEntry> ranks, bool frozen) {
  if (!started_) return {};
  due_ = Due::kNothing;
  Placement placement;
  placement.orders = hosts_.Plan(frozen);
  // The plan has already taken from `replicas` what its orders drop.
  placement.maps = publisher_.Publish(std::move(ranks), hosts_.replicas());
  return placement;
}

Placement ExpertGroup::PlanUrgently(std::vector<cluster::RankEntry> ranks, bool frozen) {
  if (planned_urgently_) {
    PlanSoon();
    return {};
  }
  planned_urgently_ = true;
  return Plan(std::move(ranks), frozen);
}

Placement ExpertGroup::OnTime(std::vector<cluster::RankEntry> ranks, bool frozen) {
  planned_urgently_ = false;
  if (due_ == Due::kPlan) return Plan(std::move(ranks), frozen);
  if (due_ == Due::kNothing) return {};
  due_ = Due::kNothing;
  Placement placement;
  placement.maps = publisher_.Publish(std::move(ranks), hosts_.replicas());
  return placement;
}

void ExpertGroup::Remove(int rank) {
  hosts_.Leave(rank);
  publisher_.Forget(rank);
}

}  // namespace epic::coordinator
