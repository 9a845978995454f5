// Epochs: which ranks form a communicator together, at which positions, and where the experts are
// among them (protocol.md §7). An epoch is formed when as many ranks have come as each of them
// wants, and is never joined later: with one rank it is lost, and the others come again. A plain
// object.
//
// Two kinds of communicators exist. One is formed here (NCCL): its ranks get positions in the order
// of their coming, and it needs an id that the rank at position 0 makes; that rank is invited
// without an id first, and all are invited with it once it has told (TakeId). The other was made by
// a launcher (MPI): its ranks say its number and their positions, which mpirun has given.
//
// The coordinator places the experts of both kinds: an invitation says which experts the rank is to
// hold, and carries the epoch's first map. That map is a promise: it holds once every rank has
// loaded its experts, and ranks wait for each other before their first step. All later maps name
// what is held.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/world/expert_group.h"
#include "coordinator/world/expert_proofs.h"
#include "coordinator/world/membership.h"
#include "proto/epic/v1/worker.pb.h"

namespace epic::coordinator {

struct Epoch {
  uint64_t number = 0;
  std::vector<int> ranks;   // by position
  bool launched = false;    // by a launcher: it needs no id
  bool id_told = false;
  ExpertGroup group;
  Placement first;  // as invitations tell it
};

class Epochs {
 public:
  // `proofs` outlives this.
  Epochs(uint64_t term, int replicas_max, ExpertProofs& proofs)
      : term_(term), replicas_max_(replicas_max), proofs_(proofs) {}

  // The epoch that the rank completes, if it does. Null if it waits for others. FailedPrecondition,
  // naming the shortfall, if the epoch would be complete and lacks slots for the model's experts;
  // its ranks go on waiting.
  absl::StatusOr<Epoch*> Join(int rank, const Member& member);
  // The rank is lost, and every epoch that it is a part of.
  void Leave(int rank);

  // (rank, its invitation)
  using Invitations = std::vector<std::pair<int, v1::JoinEpoch>>;
  // Of an epoch that was just formed.
  Invitations FirstInvitations(const Epoch& epoch) const;
  // Those with the id, if the rank was asked for it and has not told it before; else none.
  Invitations TakeId(int rank, const v1::EpochId& id);

  // Null: the rank is in no epoch that was formed.
  Epoch* Find(int rank);
  const Epoch* Find(int rank) const;
  std::map<uint64_t, Epoch>& formed() { return epochs_; }
  const std::map<uint64_t, Epoch>& formed() const { return epochs_; }

 private:
  struct Seat {
    Member member;
    uint64_t epoch = 0;  // 0: waits for others
  };

  // Ranks that wait for the same epoch, by position; empty: some are missing.
  std::vector<int> Complete(const v1::WorkerIdentity& wish) const;
  absl::StatusOr<Epoch*> Form(std::vector<int> ranks, const v1::WorkerIdentity& wish);
  v1::JoinEpoch Invitation(const Epoch& epoch, int position, const std::string& id) const;

  const uint64_t term_;
  const int replicas_max_;
  ExpertProofs& proofs_;
  uint64_t last_epoch_ = 0;  // of those formed here
  std::map<int, Seat> seats_;
  std::map<uint64_t, Epoch> epochs_;  // formed, by number
};

}  // namespace epic::coordinator
