#include "coordinator/core/sequence_placer.h"

#include <gtest/gtest.h>

#include "base/sim_loop.h"

namespace epic::coordinator {
namespace {

std::vector<uint64_t> SequencesOf(const std::vector<SequencePlacement>& placements) {
  std::vector<uint64_t> sequences;
  for (const SequencePlacement& placement : placements) sequences.push_back(placement.sequence);
  return sequences;
}

TEST(SequencePlacerTest, LowerPriorityValuesGoFirstThenOlderSequences) {
  SequencePlacer placer;
  placer.AddRank(0);
  placer.Wait(1, 0, 10);
  placer.Wait(2, -5, 10);
  placer.Wait(3, -5, 10);
  EXPECT_TRUE(placer.PlaceAll({}).empty());
  EXPECT_EQ(placer.waiting_count(), 3u);
  EXPECT_EQ(SequencesOf(placer.PlaceAll({0})), (std::vector<uint64_t>{2, 3, 1}));
  EXPECT_FALSE(placer.waits());
}

TEST(SequencePlacerTest, EachPlacementSeesTheOnesBeforeIt) {
  SequencePlacer placer;
  for (const int rank : {0, 1, 2}) placer.AddRank(rank);
  for (uint64_t id = 1; id <= 6; ++id) placer.Wait(id, 0, 10);
  const std::vector<SequencePlacement> placements = placer.PlaceAll({1, 2});
  for (size_t i = 0; i < placements.size(); ++i) {
    EXPECT_EQ(placements[i].rank, i % 2 == 0 ? 1 : 2);
    EXPECT_EQ(placements[i].first, i < 2);
  }
  EXPECT_EQ(placer.sequences(1).size(), 3u);
  EXPECT_TRUE(placer.sequences(0).empty());
  EXPECT_EQ(placer.RankOf(2), 2);
  EXPECT_EQ(placer.RankOf(99), -1);
}

TEST(SequencePlacerTest, AComputedPromptNoLongerCounts) {
  SequencePlacer placer;
  placer.AddRank(0);
  placer.AddRank(1);
  placer.Place(1, 0, 10'000);
  placer.Wait(2, 0, 10);
  EXPECT_EQ(placer.PlaceAll({0, 1}).at(0).rank, 1);
  placer.Place(3, 1, 10);
  placer.SetComputed(1);
  placer.SetComputed(1);
  placer.Wait(4, 0, 10);
  EXPECT_EQ(placer.PlaceAll({0, 1}).at(0).rank, 0);
}

TEST(SequencePlacerTest, FullerPagesCost) {
  SequencePlacer placer;
  for (const int rank : {0, 1}) {
    placer.AddRank(rank);
    placer.SetKvPageCount(rank, 10);
  }
  placer.SetKvPagesUsed(0, 9);
  placer.Wait(1, 0, 10);
  EXPECT_EQ(placer.PlaceAll({0, 1}).at(0).rank, 1);
}

// The kept loads are the sums that they stand for, whatever happens.
TEST(SequencePlacerTest, LoadsStayTheSumsOfTheirSequences) {
  SequencePlacer placer;
  std::vector<int> ranks = {0, 1, 2, 3};
  for (const int rank : ranks) placer.AddRank(rank);
  SeededRandom random(7);
  std::map<uint64_t, int64_t> tokens;  // to be computed, of those that are on a rank or wait
  uint64_t next = 1;
  for (int turn = 0; turn < 2000; ++turn) {
    const auto index = static_cast<ptrdiff_t>(random.Next() % (tokens.size() + 1));
    const auto chosen = std::next(tokens.begin(), index);
    const uint64_t victim = chosen == tokens.end() ? 0 : chosen->first;
    switch (random.Next() % 4) {
      case 0:
        tokens[next] = static_cast<int64_t>(random.Next() % 500);
        placer.Wait(next, static_cast<int>(random.Next() % 3), tokens[next]);
        ++next;
        break;
      case 1:
        placer.PlaceAll(ranks);
        break;
      case 2:
        placer.Remove(victim);
        tokens.erase(victim);
        break;
      default:
        if (placer.RankOf(victim) < 0) break;
        placer.SetComputed(victim);
        tokens[victim] = 0;
    }
    for (const int rank : ranks) {
      int64_t sum = 0;
      for (const uint64_t sequence : placer.sequences(rank)) sum += tokens.at(sequence);
      ASSERT_EQ(placer.load(rank).uncomputed_tokens, sum);
      ASSERT_EQ(placer.load(rank).running, static_cast<int>(placer.sequences(rank).size()));
    }
  }
}

TEST(SequencePlacerTest, APlacementCostsByTheNumberOfRanksNotOfSequences) {
  SequencePlacer placer;
  const std::vector<int> ranks = {0, 1, 2, 3};
  for (const int rank : ranks) placer.AddRank(rank);
  for (uint64_t id = 1; id <= 1000; ++id) placer.Wait(id, 0, 10);
  placer.PlaceAll(ranks);
  EXPECT_EQ(placer.loads_read(), 4000);
  placer.Wait(1001, 0, 10);
  placer.PlaceAll(ranks);
  EXPECT_EQ(placer.loads_read(), 4004);
  placer.PlaceAll(ranks);
  EXPECT_EQ(placer.loads_read(), 4004) << "nothing waits";
}

TEST(SequencePlacerDeathTest, ARankDoesNotGoWithSequences) {
  SequencePlacer placer;
  placer.AddRank(0);
  placer.Place(1, 0, 10);
  EXPECT_DEATH(placer.RemoveRank(0), "1 on rank 0");
  placer.Remove(1);
  placer.RemoveRank(0);
}

}  // namespace
}  // namespace epic::coordinator
