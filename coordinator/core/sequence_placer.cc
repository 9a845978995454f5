#include "coordinator/core/sequence_placer.h"

#include <optional>

#include "base/check.h"

namespace epic::coordinator {

void SequencePlacer::AddRank(int rank) {
  // The caller says which ranks may be given sequences (PlaceAll), so each rank counts as ready
  // here.
  const bool added = ranks_.try_emplace(rank, Rank{.load = {.rank = rank, .ready = true}}).second;
  CHECK(added) << "rank " << rank << " is there already";
}

void SequencePlacer::RemoveRank(int rank) {
  const auto found = ranks_.find(rank);
  CHECK(found != ranks_.end()) << "no rank " << rank;
  // Each of them goes on elsewhere or has ended: one that were left here would wait for ever.
  CHECK(found->second.sequences.empty()) << found->second.sequences.size() << " on rank " << rank;
  ranks_.erase(found);
}

void SequencePlacer::Wait(uint64_t sequence, int priority, int64_t tokens) {
  CHECK_GE(tokens, 0);
  const bool added =
      sequences_.try_emplace(sequence, Sequence{.priority = priority, .tokens = tokens}).second;
  CHECK(added) << "sequence " << sequence << " waits or is on a rank already";
  waiting_.insert({priority, sequence});
}

std::vector<SequencePlacement> SequencePlacer::PlaceAll(const std::vector<int>& ranks) {
  std::vector<SequencePlacement> placements;
  if (waiting_.empty() || ranks.empty()) return placements;
  // Only the load of a rank that is chosen changes, so all are read from the map once.
  std::vector<RankLoad> loads;
  for (const int rank : ranks) loads.push_back(ranks_.at(rank).load);
  std::map<int, size_t> index;
  for (size_t i = 0; i < ranks.size(); ++i) index[ranks[i]] = i;
  for (const auto& [order, sequence] : waiting_) {
    loads_read_ += static_cast<int64_t>(loads.size());
    const std::optional<int> chosen = ChooseRank(loads);
    CHECK(chosen.has_value());
    Rank& rank = ranks_.at(*chosen);
    placements.push_back(PlaceAt(rank, sequence));
    loads[index.at(*chosen)] = rank.load;
  }
  waiting_.clear();
  return placements;
}

SequencePlacement SequencePlacer::Place(uint64_t sequence, int rank, int64_t tokens) {
  // No priority is kept, because the sequence never waits here.
  const bool added = sequences_.try_emplace(sequence, Sequence{.tokens = tokens}).second;
  CHECK(added) << "sequence " << sequence << " waits or is on a rank already";
  return PlaceAt(ranks_.at(rank), sequence);
}

SequencePlacement SequencePlacer::PlaceAt(Rank& rank, uint64_t id) {
  Sequence& sequence = sequences_.at(id);
  CHECK_LT(sequence.rank, 0) << "sequence " << id;
  sequence.rank = rank.load.rank;
  rank.sequences.insert(id);
  rank.load.running = static_cast<int>(rank.sequences.size());
  rank.load.uncomputed_tokens += sequence.tokens;
  return {.sequence = id, .rank = rank.load.rank, .first = rank.sequences.size() == 1};
}

void SequencePlacer::SetComputed(uint64_t id) {
  Sequence& sequence = sequences_.at(id);
  CHECK_GE(sequence.rank, 0) << "sequence " << id << " waits";
  RankLoad& load = ranks_.at(sequence.rank).load;
  // Each token of a sequence calls this, and only the first call changes the load.
  load.uncomputed_tokens -= std::exchange(sequence.tokens, 0);
  CHECK_GE(load.uncomputed_tokens, 0) << "on rank " << sequence.rank;
}

void SequencePlacer::Remove(uint64_t id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  const Sequence& sequence = found->second;
  if (sequence.rank < 0) {
    waiting_.erase({sequence.priority, id});
  } else {
    Rank& rank = ranks_.at(sequence.rank);
    rank.sequences.erase(id);
    rank.load.running = static_cast<int>(rank.sequences.size());
    rank.load.uncomputed_tokens -= sequence.tokens;
    CHECK_GE(rank.load.uncomputed_tokens, 0) << "on rank " << sequence.rank;
  }
  sequences_.erase(found);
}

int SequencePlacer::RankOf(uint64_t sequence) const {
  const auto found = sequences_.find(sequence);
  return found == sequences_.end() ? -1 : found->second.rank;
}

}  // namespace epic::coordinator
