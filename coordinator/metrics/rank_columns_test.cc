#include "coordinator/metrics/rank_columns.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

namespace epic::coordinator {
namespace {

using google::protobuf::FieldDescriptor;

TEST(RankColumnsTest, NamesAreThereOnce) {
  std::set<std::string> names, metrics;
  for (const RankColumn& column : RankColumns()) {
    EXPECT_TRUE(names.insert(column.name).second) << column.name;
    EXPECT_NE(std::string(column.help), "") << column.name;
    if (column.metric == nullptr) continue;
    EXPECT_TRUE(metrics.insert(column.metric).second) << column.metric;
    // Prometheus' rules: a counter's name ends so, and a unit is in the name.
    EXPECT_EQ(std::string(column.metric).ends_with("_total"), column.kind == ColumnKind::kCounter)
        << column.metric;
    EXPECT_EQ(std::string(column.name).ends_with("_seconds"), !column.whole()) << column.name;
  }
}

// A field of v1::RankState that no column fills would stay 0 for ever.
TEST(RankColumnsTest, EveryNumberOfAnOperatorsStateHasAColumn) {
  std::set<std::string> names;
  for (const RankColumn& column : RankColumns()) names.insert(column.name);
  const auto* descriptor = v1::RankState::descriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    const bool number = field->cpp_type() != FieldDescriptor::CPPTYPE_STRING &&
                        field->cpp_type() != FieldDescriptor::CPPTYPE_BOOL;
    if (!number || field->name() == "rank" || field->name() == "generation") continue;
    EXPECT_TRUE(names.contains(field->name())) << field->name();
  }
}

TEST(RankColumnsTest, AnOperatorsStateHasTheNumbersOfTheRank) {
  const v1::RankState state = RankStateFrom({.rank = 3,
                                             .generation = uint64_t{1} << 63,
                                             .state = "ready",
                                             .experts = true,
                                             .host = "h",
                                             .total_bytes = int64_t{700} << 30,
                                             .running = 5,
                                             .last_step_age = absl::Milliseconds(1500),
                                             .map_number = 9});
  EXPECT_EQ(state.rank(), 3);
  EXPECT_EQ(state.generation(), uint64_t{1} << 63);
  EXPECT_EQ(state.state(), "ready");
  EXPECT_FALSE(state.attention());
  EXPECT_TRUE(state.experts());
  EXPECT_EQ(state.host(), "h");
  EXPECT_EQ(state.total_bytes(), int64_t{700} << 30);
  EXPECT_EQ(state.running(), 5);
  EXPECT_EQ(state.last_step_age_seconds(), 1.5);
  EXPECT_EQ(state.map_number(), 9);
}

}  // namespace
}  // namespace epic::coordinator
