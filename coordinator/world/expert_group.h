// ExpertGroup: ranks that exchange rows with each other, and where the experts are among them: who
// holds what (ExpertHosts), the map that says so (MapPublisher), and when both are worked out anew.
// A plain object.
//
// A plan costs by the number of ranks, and so does what it tells to each of them. What is won
// (joins, replicas, drains) therefore waits for OnTime, in one plan for all of it. What is lost is
// planned for at once, unless that was done since OnTime already.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/world/expert_hosts.h"
#include "coordinator/world/map_publisher.h"
#include "coordinator/world/membership.h"

namespace epic::coordinator {

// What the ranks of a group are to be told, maps first: an order may drop what the map before it
// still names.
struct Placement {
  std::optional<MapPublisher::Messages> maps;  // empty: the map has not changed
  std::vector<std::pair<int, v1::PlaceExperts>> orders;
};

class ExpertGroup {
 public:
  // `proofs` outlives this.
  ExpertGroup(ModelShape shape, int replicas_max, ExpertProofs& proofs, MapPublisherOptions maps)
      : hosts_(shape, replicas_max, proofs), publisher_(std::move(maps)) {}

  void Join(int rank, const Member& member);
  // The rank is lost, or of no use.
  void Remove(int rank);
  bool has_attention() const;

  // Nothing is planned before the start, which happens once.
  void Start();
  bool started() const { return started_; }

  // The next OnTime is to plan, or only to publish what is held.
  void PlanSoon() { due_ = Due::kPlan; }
  void PublishSoon();
  bool plan_due() const { return due_ == Due::kPlan; }

  // Frozen groups load only what nobody holds.
  Placement Plan(bool frozen);
  // After a loss: plans at once the first time since OnTime, and soon else.
  Placement PlanUrgently(bool frozen);
  Placement OnTime(bool frozen);
  // Starts a group all of whose ranks wait for each other until each has loaded what it is ordered
  // to: its first map says what will be held then. There are slots for all experts.
  Placement PlanPromised();

  ExpertHosts& hosts() { return hosts_; }
  const ExpertHosts& hosts() const { return hosts_; }
  const cluster::ExpertMap& map() const { return publisher_.map(); }

 private:
  enum class Due : uint8_t { kNothing, kMap, kPlan };

  std::vector<cluster::RankEntry> Entries() const;

  ExpertHosts hosts_;
  MapPublisher publisher_;
  std::map<int, cluster::RankEntry> ranks_;
  bool started_ = false;
  Due due_ = Due::kNothing;
  bool planned_urgently_ = false;  // since OnTime
};

}  // namespace epic::coordinator
