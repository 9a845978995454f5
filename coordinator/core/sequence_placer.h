// SequencePlacer: which rank computes which sequence. It keeps the queue of those that wait for a
// rank, by priority, and what each rank has to do. A plain object.
//
//   placer.AddRank(0);
//   placer.Wait(sequence, priority, tokens);
//   for (const SequencePlacement& placement : placer.PlaceAll(ranks)) …;   // start it there
//   placer.SetComputed(sequence);                                  // its prompt is computed
//   placer.Remove(sequence);                                       // it has ended, or waits again
//
// Loads are kept as sequences come and go, and never summed: a placement costs by the number of
// ranks, however many sequences there are.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "coordinator/routing/routing.h"

namespace epic::coordinator {

struct SequencePlacement {
  uint64_t sequence = 0;
  int rank = -1;
  bool first = false;  // the rank had no sequence before
};

class SequencePlacer {
 public:
  void AddRank(int rank);
  // The rank has no sequences any more.
  void RemoveRank(int rank);
  void SetKvPageCount(int rank, int count) { ranks_.at(rank).load.kv_page_count = count; }
  void SetKvPagesUsed(int rank, int count) { ranks_.at(rank).load.kv_pages_used = count; }

  // The sequence waits for a rank, which will have to compute `tokens` before the next new one.
  // Lower priority values go first, then older sequences.
  void Wait(uint64_t sequence, int priority, int64_t tokens);
  // Gives each sequence that waits the rank with the least to do, in order; none is left unless
  // `ranks` is empty. `ranks` are those that may be given sequences, ascending.
  std::vector<SequencePlacement> PlaceAll(const std::vector<int>& ranks);
  // Gives the rank a sequence that does not wait.
  SequencePlacement Place(uint64_t sequence, int rank, int64_t tokens);
  // The sequence's prompt is computed, and its forced tokens: what is left is a token at a time.
  void SetComputed(uint64_t sequence);
  // The sequence waits no more, and is on no rank. Unknown sequences are ignored.
  void Remove(uint64_t sequence);

  bool waits() const { return !waiting_.empty(); }
  size_t waiting_count() const { return waiting_.size(); }
  // -1: none.
  int RankOf(uint64_t sequence) const;
  // On a rank that was added.
  const std::set<uint64_t>& sequences(int rank) const { return ranks_.at(rank).sequences; }
  const RankLoad& load(int rank) const { return ranks_.at(rank).load; }
  // Loads of ranks that were read for placements so far: the work that they cost.
  int64_t loads_read() const { return loads_read_; }

 private:
  struct Rank {
    RankLoad load;
    std::set<uint64_t> sequences;
  };
  struct Sequence {
    int rank = -1;  // -1: it waits
    int priority = 0;
    int64_t tokens = 0;  // to be computed before the next new one
  };

  SequencePlacement PlaceAt(Rank& rank, uint64_t sequence);

  std::map<int, Rank> ranks_;
  std::map<uint64_t, Sequence> sequences_;
  std::set<std::pair<int, uint64_t>> waiting_;  // (priority, sequence)
  int64_t loads_read_ = 0;
};

}  // namespace epic::coordinator
