#include "coordinator/routing/routing.h"

#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

TEST(RoutingTest, NoReadyRankIsNone) {
  EXPECT_EQ(ChooseRank({}), std::nullopt);
  EXPECT_EQ(ChooseRank({{.rank = 0, .ready = false}}), std::nullopt);
}

TEST(RoutingTest, TheLeastLoadedReadyRankIsChosen) {
  EXPECT_EQ(ChooseRank({{.rank = 0, .ready = true, .uncomputed_tokens = 500},
                        {.rank = 1, .ready = true, .uncomputed_tokens = 100},
                        {.rank = 2, .ready = false}}),
            1);
  EXPECT_EQ(ChooseRank({{.rank = 0, .ready = true, .running = 3},
                        {.rank = 1, .ready = true, .running = 2}}),
            1);
}

TEST(RoutingTest, FullerPagesCostAndTiesGoToTheLowerRank) {
  EXPECT_EQ(ChooseRank({{.rank = 0, .ready = true, .kv_pages_used = 9, .kv_page_count = 10},
                        {.rank = 1, .ready = true, .kv_pages_used = 1, .kv_page_count = 10}}),
            1);
  EXPECT_EQ(ChooseRank({{.rank = 1, .ready = true}, {.rank = 0, .ready = true}}), 0);
}

}  // namespace
}  // namespace epic::coordinator
