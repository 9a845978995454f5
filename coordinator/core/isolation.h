// Isolation: finds the request that kills each rank that computes it, without harm to others. It
// knows which sequences had ranks die under them (deaths.h), which of them are suspects, and which
// rank is kept free of others so that one suspect at a time can run there alone. A plain object.
//
//   if (isolation.OnDeath(sequence, length, alone) == Deaths::Verdict::kSuspect) {
//     isolation.Wait(sequence, priority);
//   }
//   while it waits, and whenever ranks have changed:
//   if (isolation.waits()) placement = isolation.PlaceNext(candidates);
//   isolation.OnToken(sequence);    // it is a suspect no more, and others may join it
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "coordinator/core/deaths.h"

namespace epic::coordinator {

class Isolation {
 public:
  // A rank that may be given sequences.
  struct Candidate {
    int rank = -1;
    // Sequences on the rank, and on those that would be lost with it (of its epoch).
    size_t sequence_count = 0;
  };
  struct Choice {
    uint64_t sequence = 0;
    int rank = -1;
  };

  // The rank of the sequence died, and nobody knows why, when the sequence had `length` tokens.
  // `alone`: no other sequence was lost with it.
  Deaths::Verdict OnDeath(uint64_t sequence, int length, bool alone);
  // The sequence has made a token, so it is no suspect (any more).
  void OnToken(uint64_t sequence);
  bool suspect(uint64_t sequence) const;

  // A suspect waits for a rank of its own: lower priority values first, then older sequences.
  void Wait(uint64_t sequence, int priority);
  // The sequence neither waits nor runs. What is known of its deaths stays.
  void Leave(uint64_t sequence);
  // The sequence has ended.
  void Forget(uint64_t sequence);

  // A suspect waits, and none runs.
  bool waits() const { return running_ == 0 && !waiting_.empty(); }
  size_t waiting_count() const { return waiting_.size(); }
  // Chooses the rank to be kept free, the one with the fewest sequences, and stays with that choice
  // while it is a candidate. Returns the first suspect and the rank when nothing else is there.
  std::optional<Choice> PlaceNext(const std::vector<Candidate>& candidates);
  // The rank that is kept free; no other sequence may be given to it, nor to those that would be
  // lost with it. -1: none.
  int rank() const { return rank_; }

 private:
  std::map<uint64_t, Deaths> deaths_;           // of sequences whose rank died at least once
  std::map<uint64_t, int> priorities_;          // of suspects that wait
  std::set<std::pair<int, uint64_t>> waiting_;  // (priority, sequence)
  uint64_t running_ = 0;                        // the suspect that runs; 0: none
  int rank_ = -1;
};

}  // namespace epic::coordinator
