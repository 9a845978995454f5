#include "cluster/placement/expert_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epic::cluster {
namespace {

ExpertMap SmallMap() {
  ExpertMap map{.version = {3, 7}};
  map.ranks = {{{.rank = 0, .generation = 11}, /*attention=*/true, /*experts=*/false},
               {{.rank = 2, .generation = 12, .address = "127.0.0.1:9"},
                /*attention=*/false,
                /*experts=*/true}};
  map.replicas = {{}, {{2}, {}}};
  return map;
}

v1::PublishMap ForRank0(const ExpertMap& map) { return ToMessage(map, map.ranks.at(0)); }

TEST(ExpertMapTest, PassesThroughItsMessage) {
  const auto back = ExpertMapFrom(ForRank0(SmallMap()));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->version, (MapVersion{3, 7}));
  EXPECT_EQ(back->replicas, SmallMap().replicas);
  EXPECT_EQ(back->Find(2)->address, "127.0.0.1:9");
  EXPECT_EQ(back->Find(1), nullptr);
  EXPECT_EQ(back->unhosted_count(), 1);
}

TEST(ExpertMapTest, ARankIsToldWhatItNeeds) {
  ExpertMap map = SmallMap();
  map.ranks.push_back({{.rank = 3, .generation = 13}, /*attention=*/true, /*experts=*/false});
  map.ranks.push_back({{.rank = 4, .generation = 14}, /*attention=*/false, /*experts=*/true});
  map.ranks.push_back({{.rank = 5, .generation = 15}, /*attention=*/true, /*experts=*/true});
  const auto told = [&](size_t index) {
    const auto part = ExpertMapFrom(ToMessage(map, map.ranks.at(index)));
    EXPECT_TRUE(part.ok()) << part.status();
    std::vector<int> ranks;
    for (const RankEntry& entry : part->ranks) ranks.push_back(entry.rank);
    EXPECT_EQ(part->replicas.empty(), !map.ranks.at(index).attention);
    return ranks;
  };
  EXPECT_THAT(told(0), testing::ElementsAre(0, 2, 4, 5));
  EXPECT_THAT(told(1), testing::ElementsAre(0, 2, 3, 5));
  EXPECT_THAT(told(4), testing::ElementsAre(0, 2, 3, 4, 5));
}

TEST(ExpertMapTest, VersionsAreOrderedByTermFirst) {
  EXPECT_LT((MapVersion{1, 9}), (MapVersion{2, 0}));
  EXPECT_LT((MapVersion{2, 0}), (MapVersion{2, 1}));
}

TEST(ExpertMapTest, RefusesWhatNoCoordinatorMeans) {
  const auto expect_refused = [](const ExpertMap& map, const std::string& what) {
    const auto refused = ExpertMapFrom(ForRank0(map));
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(refused.status().message()), testing::HasSubstr(what));
  };
  ExpertMap map = SmallMap();
  map.replicas[1][1] = {0};
  expect_refused(map, "map.layers[1].experts[1] names rank 0");
  map = SmallMap();
  map.replicas[1][0] = {2, 2};
  expect_refused(map, "do not ascend");
  map = SmallMap();
  map.ranks[0].rank = 2;
  expect_refused(map, "rank 2 follows rank 2");
  map = SmallMap();
  map.replicas[0] = {{2}};
  expect_refused(map, "map.layers[1] has 2 experts, others 1");
}

TEST(ExpertMapTest, RefusesCountsThatDoNotAddUp) {
  for (const std::vector<int>& counts : {std::vector<int>{2}, {0}, {1, 1}, {2, -1}, {-1, 2}}) {
    v1::PublishMap message = ForRank0(SmallMap());
    message.mutable_layers(1)->mutable_counts()->Assign(counts.begin(), counts.end());
    const auto refused = ExpertMapFrom(message);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(refused.status().message()), testing::HasSubstr("map.layers[1]."));
  }
}

}  // namespace
}  // namespace epic::cluster
