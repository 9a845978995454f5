#include "cli/operators_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epic::cli {
namespace {

using testing::HasSubstr;

TEST(OperatorsClientTest, TheTableSaysWhatEachRankIs) {
  v1::ClusterState state;
  state.set_reason("3 of 96 experts unhosted; ranks 1 load them");
  state.set_experts(96);
  state.set_experts_unhosted(3);
  v1::RankState& first = *state.add_ranks();
  first.set_attention(true);
  first.set_state("loading");
  first.set_loaded_bytes(43);
  first.set_total_bytes(100);
  v1::RankState& second = *state.add_ranks();
  second.set_rank(11);
  second.set_experts(true);
  second.set_state("ready");
  second.set_expert_slots(60);
  second.set_experts_held(48);
  second.set_activity("waiting for rank 3 at layer 7 since 0.012 s");
  const std::string table = StateTable(state);
  EXPECT_THAT(table, HasSubstr("not ready: 3 of 96 experts unhosted"));
  EXPECT_THAT(table, HasSubstr("0     attention  loading 43%"));
  EXPECT_THAT(table, HasSubstr("11    experts    ready        48/60"));
  EXPECT_THAT(table, HasSubstr("since 0.012 s\n"));
}

TEST(OperatorsClientTest, AnEventIsALine) {
  v1::ClusterEvent event;
  event.set_number(7);
  event.set_kind("revoke");
  event.set_rank(3);
  event.set_text("no tick for 400 ms");
  EXPECT_THAT(EventLine(event), HasSubstr("revoke  rank 3  no tick for 400 ms\n"));
  event.set_rank(-1);
  EXPECT_THAT(EventLine(event), HasSubstr("revoke  no tick"));
}

}  // namespace
}  // namespace epic::cli
