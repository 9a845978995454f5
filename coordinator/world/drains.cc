#include "coordinator/world/drains.h"

#include "base/check.h"

namespace epic::coordinator {

DrainState Drains::state(int rank) const {
  const auto at = drains_.find(rank);
  return at == drains_.end() ? DrainState::kNone : at->second.state;
}

bool Drains::cancellable(int rank) const {
  const DrainState now = state(rank);
  // What a worker was told, or must do, cannot be undone from here.
  return now == DrainState::kByOperator || now == DrainState::kRequestedByWorker;
}

std::vector<int> Drains::Cancellable() const {
  std::vector<int> ranks;
  for (const auto& [rank, drain] : drains_) {
    if (cancellable(rank)) ranks.push_back(rank);
  }
  return ranks;
}

void Drains::Begin(int rank, DrainState state, absl::Time now) {
  CHECK(state != DrainState::kNone);
  // A second wish is no second drain: the caller looks at the state first.
  CHECK(drains_.emplace(rank, Drain{state, now}).second) << "rank " << rank << " drains already";
}

void Drains::Escalate(int rank, DrainState state) {
  Drain& drain = drains_.at(rank);
  // What a rank was told cannot be taken back, and a worker that asked once goes on asking.
  CHECK(state > drain.state) << "rank " << rank << ": from drain state "
                             << static_cast<int>(drain.state) << " to " << static_cast<int>(state);
  drain.state = state;
}

void Drains::Cancel(int rank) {
  CHECK(cancellable(rank)) << "rank " << rank << " in drain state "
                           << static_cast<int>(state(rank));
  drains_.erase(rank);
}

Drains::Due Drains::Advance(absl::Time now, const std::function<Remainder(int)>& remainder) {
  Due due;
  for (auto& [rank, drain] : drains_) {
    if (drain.state == DrainState::kToldToEnd) continue;
    const Remainder left = remainder(rank);
    CHECK_GE(left.sequences, 0);
    // Sequences end or move first: they would lose time with every expert that moves away.
    if (left.sequences > 0) {
      if (now - drain.since >= move_after_) due.move.push_back(rank);
      continue;
    }
    // An expert that nobody else holds yet would be missing in every step until it is loaded.
    if (left.experts && drain.state != DrainState::kMustEnd) continue;
    drain.state = DrainState::kToldToEnd;
    due.may_end.push_back(rank);
  }
  return due;
}

}  // namespace epic::coordinator
