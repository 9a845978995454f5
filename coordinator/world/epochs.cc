#include "coordinator/world/epochs.h"

#include <algorithm>

#include "base/check.h"

namespace epic::coordinator {

std::optional<Epochs::Formed> Epochs::Join(int rank, int size, int place) {
  CHECK_GT(size, 0);
  seats_[rank] = {.size = size, .place = place < size ? place : -1};
  std::vector<int> came;
  for (const auto& [other, seat] : seats_) {
    if (seat.epoch == 0 && seat.size == size) came.push_back(other);
  }
  if (static_cast<int>(came.size()) < size) return std::nullopt;
  Formed formed{.epoch = ++last_epoch_, .ranks = std::vector(size, -1)};
  for (const int other : came) {
    const int wanted = seats_.at(other).place;
    if (wanted >= 0 && formed.ranks[wanted] < 0) formed.ranks[wanted] = other;
  }
  for (const int other : came) {
    if (std::ranges::count(formed.ranks, other) == 0) {
      *std::ranges::find(formed.ranks, -1) = other;
    }
  }
  for (int i = 0; i < size; ++i) {
    Seat& seat = seats_.at(formed.ranks[i]);
    seat.place = i;
    seat.epoch = formed.epoch;
  }
  return formed;
}

void Epochs::Leave(int rank) { seats_.erase(rank); }

std::vector<int> Epochs::TakeId(int rank, const v1::EpochId& id) {
  const auto at = seats_.find(rank);
  if (at == seats_.end() || at->second.epoch == 0 || at->second.epoch != id.epoch() ||
      at->second.place != 0 || at->second.id_told || id.unique_id().empty()) {
    return {};
  }
  at->second.id_told = true;
  std::vector<int> ranks;
  for (const auto& [other, seat] : seats_) {
    if (seat.epoch == id.epoch()) ranks.push_back(other);
  }
  return ranks;
}

v1::JoinEpoch Epochs::Invitation(int rank, const std::string& unique_id) const {
  const Seat& seat = seats_.at(rank);
  v1::JoinEpoch invitation;
  invitation.set_epoch(seat.epoch);
  invitation.set_rank(seat.place);
  invitation.set_size(seat.size);
  invitation.set_unique_id(unique_id);
  return invitation;
}

}  // namespace epic::coordinator
