#include "coordinator/world/epochs.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status.h"

namespace epic::coordinator {

absl::StatusOr<Epoch*> Epochs::Join(int rank, const Member& member) {
  const v1::WorkerIdentity& wish = member.identity;
  CHECK_GT(wish.epoch_ranks(), 0);
  CHECK(seats_.emplace(rank, Seat{.member = member}).second) << "rank " << rank;
  // The seat is kept even if no epoch comes of it: the rank waits for others.
  std::vector<int> ranks = Complete(wish);
  if (ranks.empty()) return nullptr;
  return Form(std::move(ranks), wish);
}

std::vector<int> Epochs::Complete(const v1::WorkerIdentity& wish) const {
  const int size = wish.epoch_ranks();
  std::vector<int> ranks(size, -1);
  int next = 0;
  for (const auto& [rank, seat] : seats_) {
    const v1::WorkerIdentity& other = seat.member.identity;
    // Ranks of one size that are in an epoch already, or of another launcher, do not count.
    if (seat.epoch != 0 || other.epoch_ranks() != size || other.epoch() != wish.epoch()) continue;
    // Two ranks claim one position of a launched epoch when a worker has joined again before its
    // former life is known to be over: the later one lives.
    const int position = wish.epoch() != 0 ? other.epoch_position() - 1 : next++;
    CHECK(position >= 0 && position < size) << "position " << position << " of " << size;
    ranks[position] = rank;
    if (next == size) break;
  }
  return std::ranges::count(ranks, -1) > 0 ? std::vector<int>() : ranks;
}

absl::StatusOr<Epoch*> Epochs::Form(std::vector<int> ranks, const v1::WorkerIdentity& wish) {
  // A launched epoch may outlive a coordinator, or a wrong revocation: its ranks hold maps already,
  // and take only newer ones.
  uint64_t last_map = 0;
  for (const int rank : ranks) {
    last_map = std::max(last_map, seats_.at(rank).member.identity.epoch_map());
  }
  const MapPublisherOptions maps{.term = term_, .last_number = last_map, .complete_only = true};
  Epoch epoch{.ranks = std::move(ranks),
              .launched = wish.epoch() != 0,
              .group = ExpertGroup(ShapeOf(wish), replicas_max_, proofs_, maps)};
  for (const int rank : epoch.ranks) epoch.group.Join(rank, seats_.at(rank).member);
  // Checked before anything is remembered, so that a refused rank leaves no trace.
  if (const int64_t missing = epoch.group.hosts().Shortfall(); missing > 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("its epoch lacks %d slots for the %d experts of this model", missing,
                        ShapeOf(wish).expert_total()));
  }
  epoch.first = epoch.group.PlanPromised();
  epoch.number = epoch.launched ? wish.epoch() : ++last_epoch_;
  for (const int rank : epoch.ranks) seats_.at(rank).epoch = epoch.number;
  const uint64_t number = epoch.number;
  // A former life of a launched epoch is replaced.
  return &epochs_.insert_or_assign(number, std::move(epoch)).first->second;
}

void Epochs::Leave(int rank) {
  // The communicator is broken for all of its ranks; they come again, each as another rank.
  if (const Epoch* const epoch = Find(rank)) epochs_.erase(epoch->number);
  seats_.erase(rank);
}

Epochs::Invitations Epochs::FirstInvitations(const Epoch& epoch) const {
  Invitations invitations;
  if (!epoch.launched) {
    v1::JoinEpoch question;
    question.set_epoch(epoch.number);
    question.set_size(static_cast<int>(epoch.ranks.size()));
    invitations.emplace_back(epoch.ranks[0], std::move(question));
    return invitations;
  }
  for (int i = 0; i < static_cast<int>(epoch.ranks.size()); ++i) {
    invitations.emplace_back(epoch.ranks[i], Invitation(epoch, i, ""));
  }
  return invitations;
}

Epochs::Invitations Epochs::TakeId(int rank, const v1::EpochId& id) {
  Epoch* const epoch = Find(rank);
  Invitations invitations;
  // A late or repeated answer must not invite the ranks twice: each id makes one communicator.
  if (epoch == nullptr || epoch->launched || epoch->number != id.epoch() ||
      epoch->ranks[0] != rank || epoch->id_told || id.unique_id().empty()) {
    return invitations;
  }
  epoch->id_told = true;
  for (int i = 0; i < static_cast<int>(epoch->ranks.size()); ++i) {
    invitations.emplace_back(epoch->ranks[i], Invitation(*epoch, i, id.unique_id()));
  }
  return invitations;
}

v1::JoinEpoch Epochs::Invitation(const Epoch& epoch, int position, const std::string& id) const {
  const int rank = epoch.ranks[position];
  v1::JoinEpoch invitation;
  invitation.set_epoch(epoch.number);
  invitation.set_rank(position);
  invitation.set_size(static_cast<int>(epoch.ranks.size()));
  invitation.set_unique_id(id);
  invitation.mutable_ranks()->Add(epoch.ranks.begin(), epoch.ranks.end());
  for (const auto& [to, order] : epoch.first.orders) {
    if (to == rank) *invitation.mutable_experts() = order;
  }
  CHECK(epoch.first.maps.has_value()) << "epoch " << epoch.number << " has no map";
  for (const auto& [to, map] : *epoch.first.maps) {
    if (to == rank) *invitation.mutable_map() = map;
  }
  return invitation;
}

Epoch* Epochs::Find(int rank) { return const_cast<Epoch*>(std::as_const(*this).Find(rank)); }

const Epoch* Epochs::Find(int rank) const {
  const auto seat = seats_.find(rank);
  if (seat == seats_.end() || seat->second.epoch == 0) return nullptr;
  const auto epoch = epochs_.find(seat->second.epoch);
  // It may have ended with another rank, or have been formed anew by others.
  if (epoch == epochs_.end() || std::ranges::count(epoch->second.ranks, rank) == 0) return nullptr;
  return &epoch->second;
}

}  // namespace epic::coordinator
