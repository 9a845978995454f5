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
// Each part of the work has an object of its own: Membership (who is here), StartRule, ExpertGroup
// (who holds which experts, and the map), Epochs, Verdicts (who has stopped), Drains, Readiness.
// World hands events to them and turns what they decide into messages, losses and log events.
//
// Ranks are of three kinds, and a world may have any number of each. Most exchange rows by
// messages; together they are one ExpertGroup. Others step together in an *epoch*, one life of a
// communicator (coordinator/world/epochs.h): each epoch is a group of its own, and is lost as one.
// A rank may also hold all experts itself, and needs no map (WorkerIdentity.holds_all_experts).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/placement/expert_map.h"
#include "coordinator/world/drains.h"
#include "coordinator/world/epochs.h"
#include "coordinator/world/event_log.h"
#include "coordinator/world/expert_group.h"
#include "coordinator/world/membership.h"
#include "coordinator/world/readiness.h"
#include "coordinator/world/start_rule.h"
#include "coordinator/world/verdicts.h"
#include "proto/epic/v1/worker.pb.h"

namespace epic::coordinator {

struct WorldOptions {
  uint64_t term = 0;
  // Ranks that start the world; 0: as soon as all experts fit and nobody has joined for `quiet`.
  int expect_ranks = 0;
  int replicas_max = 1;  // of an expert, while slots are left
  absl::Duration quiet = absl::Seconds(2);
  // How long sequences of a draining rank may go on there before they move.
  absl::Duration drain_move_after = absl::Seconds(10);
  // How long a broken link is watched before it is judged, unless two ranks report it.
  absl::Duration link_settle = absl::Milliseconds(500);
  LivenessLimits liveness;
  // 32 random bytes of this life of the coordinator, from which the keys of pairs are made; empty:
  // pairs have none.
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
  std::vector<int> move;  // ranks whose sequences are to go on elsewhere, now
};

class World : private LinkFacts {
 public:
  // `events` outlives this.
  World(WorldOptions options, EventLog& events);
  World(const World&) = delete;

  // FailedPrecondition, naming both values, for a worker that cannot be in this world;
  // InvalidArgument for one that says what cannot be. Else its rank.
  absl::StatusOr<int> Join(const v1::ControlHello& hello, absl::Time now);
  // All messages but those about sequences.
  void OnMessage(int rank, const v1::ControlMessage& message, absl::Time now);
  // The rank's sockets ended and it did not dial again: the process is gone.
  void OnClosed(int rank, const absl::Status& why, absl::Time now);
  // `sequences`: how many each rank has.
  void OnTime(absl::Time now, const std::map<int, int>& sequences);

  // What operators may do. NotFound for an unknown rank.
  absl::Status Fence(int rank, absl::Time now);
  // FailedPrecondition, naming the shortfall, if the others cannot do its work; it is taken back if
  // losses make that true before the rank was told.
  absl::Status Drain(int rank, absl::Time now);
  absl::Status CancelDrain(int rank);
  void Freeze(bool frozen);
  // The worker refuses new sequences by itself.
  void NoteDraining(int rank, absl::Time now);

  WorldActions Take() { return std::exchange(actions_, {}); }

  // As Readiness.
  absl::Status Ready() const { return readiness_.Ready(); }
  absl::Status ReadySoon() const { return readiness_.ReadySoon(); }
  bool Routable(int rank) const { return readiness_.Routable(rank); }
  std::string State(int rank) const { return readiness_.State(rank); }
  // As Membership.
  std::vector<int> RanksLostTogether(int rank) const { return members_.RanksLostTogether(rank); }

  const std::map<int, Member>& members() const { return members_.all(); }
  // The map of the ranks that exchange messages; version {0, 0}: there is none so far.
  const cluster::ExpertMap& map() const;
  // How many experts the rank holds, over all layers, as far as placement knows.
  int64_t CountExpertsHeld(int rank) const;
  // The totals of the group in which the fewest experts lack a holder; nothing: no experts are
  // placed here.
  struct ExpertTotals {
    int64_t experts = 0;       // of the model, over all layers
    int64_t unhosted = 0;      // held by no rank
    int64_t unreplicated = 0;  // held by one rank alone
  };
  std::optional<ExpertTotals> CountExperts() const;
  const Liveness& liveness() const { return verdicts_.liveness(); }
  bool frozen() const { return verdicts_.frozen(); }

 private:
  void Welcome(int rank, const Member& member, absl::Time now);
  // Null: the rank is in no group, or its epoch is not formed yet.
  ExpertGroup* GroupOf(int rank);
  void OnReady(int rank, const v1::WorkerReady& ready);
  void OnExpertsReady(int rank, const v1::ExpertsReady& ready);
  void OnExpertsFailed(int rank, const v1::ExpertsFailed& failed);
  void JoinGroup(int rank, const Member& member, absl::Time now);
  void JoinEpoch(int rank, const Member& member);
  void Invite(const Epochs::Invitations& invitations);
  void OnLinkMessage(int rank, const v1::ControlMessage& message, absl::Time now);
  void OnDrainRequest(int rank, absl::Time now);

  // The link of a refused rank stays, so that its worker can be told.
  void Refuse(int rank, const std::string& why);
  // Goodbyes apart, all that share its epoch are lost with it.
  void Lose(int rank, EventKind kind, const std::string& why, bool unexplained);
  void Remove(int rank, EventKind kind, const std::string& why);

  void StartIfComplete(absl::Time now);
  void PlanSoon();
  void PlanUrgently();
  void Tell(const ExpertGroup& group, Placement placement);

  void Carry(const Ruling& ruling);
  // `missed`: what the others will lack.
  void LogEndAllTheSame(int rank, const absl::Status& missed);
  void StopDraining(int rank);
  // After losses: drains that have become impossible are taken back, or hastened.
  void ReconsiderDrains();
  void AdvanceDrains(absl::Time now, const std::map<int, int>& sequences);

  // LinkFacts.
  bool IsMember(int rank) const override { return members_.Find(rank) != nullptr; }
  bool Needs(int rank, int other) const override;
  bool HasElsewhere(int rank) const override { return readiness_.CountRoutable(rank) > 0; }
  absl::Time JoinedAt(int rank) const override { return members_.at(rank).joined_at; }

  void LogEvent(EventKind kind, int rank, std::string text);
  void SendTo(int rank, v1::ControlMessage message);

  const WorldOptions options_;
  EventLog& events_;
  Membership members_;
  ExpertProofs proofs_;
  const StartRule start_rule_;
  std::optional<ExpertGroup> group_;  // of the ranks that exchange messages
  Epochs epochs_;
  Verdicts verdicts_;
  Drains drains_;
  const Readiness readiness_;  // of the parts above
  WorldActions actions_;
};

}  // namespace epic::coordinator
