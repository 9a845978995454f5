#include "coordinator/world/map_publisher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

// Ranks 0 (attention) and 1, 2 (experts) of one layer with two experts.
std::vector<cluster::RankEntry> Ranks(uint64_t last_generation = 12) {
  return {{{.rank = 0, .generation = 10}, /*attention=*/true, /*experts=*/false},
          {{.rank = 1, .generation = 11}, /*attention=*/false, /*experts=*/true},
          {{.rank = 2, .generation = last_generation}, /*attention=*/false, /*experts=*/true}};
}

TEST(MapPublisher, BeginsWithACompleteMap) {
  MapPublisher publisher({.term = 7});
  EXPECT_FALSE(publisher.Publish(Ranks(), {{{1}, {}}}));
  EXPECT_EQ(publisher.map().version, (cluster::MapVersion{0, 0}));
  const auto messages = publisher.Publish(Ranks(), {{{1}, {2}}});
  ASSERT_TRUE(messages);
  ASSERT_EQ(messages->size(), 3u);
  EXPECT_EQ(publisher.map().version, (cluster::MapVersion{7, 1}));
  // Every rank is told of those that it exchanges rows with; holders are told to attention ranks.
  const auto& [first, to_attention] = messages->at(0);
  EXPECT_EQ(first, 0);
  EXPECT_EQ(to_attention.ranks_size(), 3);
  EXPECT_EQ(to_attention.layers_size(), 1);
  EXPECT_EQ(messages->at(2).second.ranks_size(), 2);
  EXPECT_EQ(messages->at(2).second.layers_size(), 0);
}

TEST(MapPublisher, TellsChangesAlone) {
  MapPublisher publisher({.term = 7});
  ASSERT_TRUE(publisher.Publish(Ranks(), {{{1}, {2}}}));
  EXPECT_FALSE(publisher.Publish(Ranks(), {{{1}, {2}}}));
  // Another life of a rank is another rank to its peers.
  EXPECT_TRUE(publisher.Publish(Ranks(13), {{{1}, {2}}}));
  // Later maps may lack holders: what is there can be used.
  EXPECT_TRUE(publisher.Publish(Ranks(13), {{{1}, {}}}));
  EXPECT_EQ(publisher.map().version.number, 3u);
  EXPECT_EQ(publisher.map().unhosted_count(), 1);
}

TEST(MapPublisher, WhereAllStepTogetherEveryMapIsComplete) {
  MapPublisher publisher({.term = 7, .last_number = 4, .complete_only = true});
  ASSERT_TRUE(publisher.Publish(Ranks(), {{{1}, {2}}}));
  // What ranks hold from before has lower numbers.
  EXPECT_EQ(publisher.map().version, (cluster::MapVersion{7, 5}));
  EXPECT_FALSE(publisher.Publish(Ranks(), {{{1}, {}}}));
  ASSERT_TRUE(publisher.Publish(Ranks(), {{{1}, {1}}}));
  EXPECT_EQ(publisher.map().version.number, 6u);
}

TEST(MapPublisher, GivesTheKeyOfAPairToItsTwoRanks) {
  MapPublisher publisher({.term = 7, .pair_secret = std::string(32, 's')});
  const auto messages = publisher.Publish(Ranks(), {{{1}, {2}}});
  const auto key = [&](int told, int other) {
    for (const v1::MapRank& entry : messages->at(told).second.ranks()) {
      if (entry.rank() == other) return entry.pair_key();
    }
    return std::string("not told");
  };
  EXPECT_EQ(key(0, 1), key(1, 0));
  EXPECT_EQ(key(0, 1).size(), 32u);
  EXPECT_NE(key(0, 1), key(0, 2));
  EXPECT_EQ(key(1, 2), "not told");
  EXPECT_EQ(key(1, 1), "");
  // Keys are made from term and ranks: one that was forgotten comes out the same.
  const std::string before = key(0, 1);
  publisher.Forget(1);
  const auto again = publisher.Publish(Ranks(13), {{{1}, {2}}});
  EXPECT_EQ(again->at(0).second.ranks(1).pair_key(), before);
}

}  // namespace
}  // namespace epic::coordinator
