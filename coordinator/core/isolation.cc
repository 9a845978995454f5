#include "coordinator/core/isolation.h"

#include <algorithm>

#include "base/check.h"

namespace epic::coordinator {

Deaths::Verdict Isolation::OnDeath(uint64_t sequence, int length, bool alone) {
  return deaths_[sequence].OnDeath(length, alone);
}

void Isolation::OnToken(uint64_t sequence) {
  const auto found = deaths_.find(sequence);
  if (found == deaths_.end() || !found->second.suspect()) return;
  CHECK_EQ(running_, sequence) << "a suspect ran beside others";
  found->second.OnToken();
  Leave(sequence);
}

bool Isolation::suspect(uint64_t sequence) const {
  const auto found = deaths_.find(sequence);
  return found != deaths_.end() && found->second.suspect();
}

void Isolation::Wait(uint64_t sequence, int priority) {
  CHECK(suspect(sequence)) << "sequence " << sequence;
  CHECK_NE(running_, sequence);
  priorities_[sequence] = priority;
  // Ids ascend, so among equal priorities the older sequence comes first.
  waiting_.insert({priority, sequence});
}

void Isolation::Leave(uint64_t sequence) {
  if (const auto found = priorities_.find(sequence); found != priorities_.end()) {
    waiting_.erase({found->second, sequence});
    priorities_.erase(found);
  }
  // The rank takes others again at once. The next suspect must therefore choose anew.
  if (running_ == sequence) {
    running_ = 0;
    rank_ = -1;
  }
  // Nobody is left to keep a rank free for.
  if (running_ == 0 && waiting_.empty()) rank_ = -1;
}

void Isolation::Forget(uint64_t sequence) {
  Leave(sequence);
  deaths_.erase(sequence);
}

std::optional<Isolation::Choice> Isolation::PlaceNext(const std::vector<Candidate>& candidates) {
  CHECK(waits());
  auto chosen = std::ranges::find(candidates, rank_, &Candidate::rank);
  // A rank that is emptied already is kept: to change it at each call would empty all in turn.
  if (chosen == candidates.end()) {
    chosen = std::ranges::min_element(candidates, {}, &Candidate::sequence_count);
  }
  // Nothing is moved away from the chosen rank: what runs there ends, and nothing new comes. The
  // one with the fewest sequences is free first.
  rank_ = chosen == candidates.end() ? -1 : chosen->rank;
  if (rank_ < 0 || chosen->sequence_count > 0) return std::nullopt;
  running_ = waiting_.begin()->second;
  waiting_.erase(waiting_.begin());
  priorities_.erase(running_);
  return Choice{.sequence = running_, .rank = rank_};
}

}  // namespace epic::coordinator
