// ExpertGroup: ranks that exchange rows with each other, and where the experts are among them: who
// holds what (ExpertHosts), the map that says so (MapPublisher), and when both are worked out anew.
// A plain object.
//
// A plan costs by the number of ranks, and so does what it tells to each of them. What is won
// (joins, replicas, drains) therefore waits for OnTime, in one plan for all of it. What is lost is
// planned for at once, unless that was done since OnTime already.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/world/expert_hosts.h"
#include "coordinator/world/map_publisher.h"

namespace epic::coordinator {

// What the ranks of a group are to be told, maps first: an order may drop what the map before it
// still names.
struct Placement {
  std::optional<MapPublisher::Messages> maps;  // empty: the map has not changed
  std::vector<std::pair<int, v1::PlaceExperts>> orders;
};

class ExpertGroup {
 public:
  ExpertGroup(ModelShape shape, int replicas_max, MapPublisher publisher)
      : hosts_(shape, replicas_max), publisher_(std::move(publisher)) {}

  // Nothing is planned before the start, which happens once.
  void Start();
  bool started() const { return started_; }

  // The next OnTime is to plan, or only to publish what is held.
  void PlanSoon() { due_ = Due::kPlan; }
  void PublishSoon();
  bool plan_due() const { return due_ == Due::kPlan; }

  // `ranks` are those of the group now, ascending. Frozen groups load only what nobody holds.
  Placement Plan(std::vector<cluster::RankEntry> ranks, bool frozen);
  // After a loss: plans at once the first time since OnTime, and soon else.
  Placement PlanUrgently(std::vector<cluster::RankEntry> ranks, bool frozen);
  Placement OnTime(std::vector<cluster::RankEntry> ranks, bool frozen);
  // The rank is out of the group.
  void Remove(int rank);

  ExpertHosts& hosts() { return hosts_; }
  const ExpertHosts& hosts() const { return hosts_; }
  const cluster::ExpertMap& map() const { return publisher_.map(); }

 private:
  enum class Due : uint8_t { kNothing, kMap, kPlan };

  ExpertHosts hosts_;
  MapPublisher publisher_;
  bool started_ = false;
  Due due_ = Due::kNothing;
  bool planned_urgently_ = false;  // since OnTime
};

}  // namespace epic::coordinator
