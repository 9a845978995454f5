// World: the ranks, what each is and holds, and the map of experts that they share (protocol.md §1,
// §4–6). It decides who joins, when the world starts, who is lost, and what is told to whom. A
// plain object: events and time in, actions out.
//
//   ASSIGN_OR_RETURN(int rank, world.Join(hello, now));
//   world.OnMessage(rank, message, now);
//   world.OnClosed(rank, status, now);
//   world.OnTime(now, sequences);          // every LivenessLimits::period
//   for (auto& action of world.Take()) …;  // after each of them
//
// A worker that has both roles and no address for the exchange is *whole*: it holds all experts
// itself and needs no map. Any number of such ranks, and ranks of the exchange, can be in a world.
// Whole ranks may share an *epoch*, one life of a communicator, theirs (MPI) or one that is formed
// here (coordinator/world/epochs.h): it is lost as one.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/placement/expert_map.h"
#include "coordinator/world/epochs.h"
#include "coordinator/world/event_log.h"
#include "coordinator/world/expert_hosts.h"
#include "coordinator/world/link_court.h"
#include "coordinator/world/liveness.h"
#include "proto/epic/v1/worker.pb.h"

namespace epic::coordinator {

struct WorldOptions {
  uint64_t term = 0;
  // Ranks that start the world; 0: as soon as all experts fit and nobody has joined for `quiet`.
  int expect_ranks = 0;
  int replicas_max = 1;  // of an expert, while slots are left
  absl::Duration quiet = absl::Seconds(2);
  // After so long in a drain, requests move.
  absl::Duration drain_move_after = absl::Seconds(10);
  // How long a broken link is watched before it is judged, unless two ranks report it.
  absl::Duration link_settle = absl::Milliseconds(500);
  LivenessLimits liveness;
  // Of this life of the coordinator, 32 random bytes, for the keys of pairs; empty: no keys.
  std::string pair_secret;
};

// Ranks that are out of the world: their links are to be closed, their sequences go on elsewhere.
// More than one: those of an epoch (one life of a communicator), which is lost as one and is one
// death, however long its processes take to end.
struct LostRanks {
  std::vector<int> ranks;
  std::string why;
  // They ended by themselves: what they computed may be the cause.
  bool unexplained = false;
};

struct WorldActions {
  std::vector<std::pair<int, v1::ControlMessage>> messages;  // to be sent, in order, before losses
  std::vector<LostRanks> lost;
  std::vector<int> move;  // whose sequences are to go on elsewhere, now
};

class World {
 public:
  struct Member {
    uint64_t generation = 0;
    v1::WorkerIdentity identity;
    bool whole = false;
    absl::Time joined_at;
    std::optional<v1::WorkerReady> ready;  // as an attention rank
    v1::LoadProgress load;
    v1::RankReport report;
    std::string refusal;  // why it is of no use; its link stays
    bool draining = false;
    bool told_to_drain = false;  // the message went out; no way back
    bool of_itself = false;      // it drains because it asked to, or takes nothing more
    bool ends = false;           // drains whatever the others can hold
    absl::Time draining_since;
    std::string avoided;     // why it gets no sequences for now: a broken link
    bool suspected = false;  // said while frozen
  };

  // `events` outlives this.
  World(WorldOptions options, EventLog& events);

  // FailedPrecondition, naming both values, for a worker that cannot be in this world;
  // InvalidArgument for one that says what cannot be. Else its rank.
  absl::StatusOr<int> Join(const v1::ControlHello& hello, absl::Time now);
  // All messages but those about sequences.
  void OnMessage(int rank, const v1::ControlMessage& message, absl::Time now);
  // Its sockets ended and nobody dialled again: the process is gone.
  void OnClosed(int rank, const absl::Status& why, absl::Time now);
  // `sequences`: those that each rank has.
  void OnTime(absl::Time now, const std::map<int, int>& sequences);

  // What operators may do. NotFound for an unknown rank.
  absl::Status Fence(int rank, absl::Time now);
  // FailedPrecondition, naming the shortfall, if the others cannot do its work; it is taken back if
  // losses make that true before the rank was told.
  absl::Status Drain(int rank, absl::Time now);
  absl::Status CancelDrain(int rank);
  void Freeze(bool frozen);
  // The worker refuses new sequences of itself.
  void NoteDraining(int rank, absl::Time now);

  WorldActions Take();

  // Why nothing can be served; OK: it can.
  absl::Status Ready() const;
  // As Ready, but experts that are being loaded will be there soon.
  absl::Status ReadySoon() const;
  // Whether it may be given sequences.
  bool Routable(int rank) const;
  // The rank, and those that are lost with it. Empty for one that is not in the world.
  std::vector<int> Together(int rank) const;
  // loading, ready, draining or refused.
  std::string State(int rank) const;

  const std::map<int, Member>& members() const { return members_; }
  const cluster::ExpertMap& map() const { return map_; }
  // Null: no rank of the exchange has joined so far.
  const ExpertHosts* hosts() const { return hosts_ ? &*hosts_ : nullptr; }
  const Liveness& liveness() const { return liveness_; }
  bool frozen() const { return frozen_; }

 private:
  absl::Status CheckIdentity(const v1::WorkerIdentity& identity) const;
  absl::Status CheckClass(const std::string& profile, const std::string& checkpoint);
  void OnReady(int rank, const v1::WorkerReady& ready);
  void OnExpertsReady(int rank, const v1::ExpertsReady& ready);
  void JoinEpoch(int rank);
  void OnEpochId(int rank, const v1::EpochId& id);
  void OnLink(int rank, const v1::ControlMessage& message, absl::Time now);
  void Refuse(int rank, const std::string& why);
  // Goodbyes apart, with all that share its epoch.
  void Lose(int rank, const std::string& kind, const std::string& why, bool unexplained);
  void Remove(int rank, const std::string& kind, const std::string& why);

  void TryStart(absl::Time now);
  // Orders and the map, as members and holdings now are: a plan costs by the number of ranks, and
  // so does what it tells to each of them. What is won waits for OnTime, in one plan for all of it.
  // What is lost is planned for at once, unless that was done since OnTime already.
  void PlanSoon() { plan_due_ = true; }
  void PlanUrgently();
  void Replan();
  void PublishMap();
  // Of a hello between two ranks; empty without a secret.
  const std::string& PairKey(int a, int b);
  cluster::ExpertMap NextMap() const;
  void JudgeLiveness(absl::Time now);
  // Revokes whom the link court finds guilty.
  void Convict(absl::Time now);
  void JudgeLinks(absl::Time now);
  void JudgePair(const BrokenPair& pair, absl::Time now);
  // OK: the others can do its work.
  absl::Status CheckDispensable(int rank) const;
  void StartDraining(Member& member, absl::Time now);
  void StopDraining(int rank, Member& member);
  // `missed`: what the others will lack.
  void EndAllTheSame(int rank, const absl::Status& missed);
  // After losses.
  void ReconsiderDrains();
  void AdvanceDrains(absl::Time now, const std::map<int, int>& sequences);

  bool mapped(const Member& member) const { return !member.whole && member.refusal.empty(); }
  int CountRoutable(int without) const;
  std::string WaitingFor() const;
  void Say(const std::string& kind, int rank, std::string text);
  void Send(int rank, v1::ControlMessage message);

  const WorldOptions options_;
  EventLog& events_;
  std::map<int, Member> members_;
  int next_rank_ = 0;
  std::string profile_, checkpoint_;  // of the world, from its first rank on
  std::optional<ExpertHosts> hosts_;
  Epochs epochs_;
  Liveness liveness_;
  LinkCourt links_;
  std::set<std::pair<int, int>> broken_links_;  // said and marked
  bool started_ = false;
  bool plan_due_ = false;
  bool publish_due_ = false;       // the map alone
  bool planned_urgently_ = false;  // since OnTime
  bool frozen_ = false;
  absl::Time last_join_at_;
  cluster::ExpertMap map_;  // as published
  std::map<std::pair<int, int>, std::string> pair_keys_;
  WorldActions actions_;
};

}  // namespace epic::coordinator
