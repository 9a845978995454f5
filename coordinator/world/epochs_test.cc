#include "coordinator/world/epochs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

v1::EpochId Id(uint64_t epoch, const std::string& text) {
  v1::EpochId id;
  id.set_epoch(epoch);
  id.set_unique_id(text);
  return id;
}

TEST(EpochsTest, FormsWhenAllHaveComeAndSpreadsTheIdOfPlaceZeroOnce) {
  Epochs epochs;
  EXPECT_FALSE(epochs.Join(4, 3, -1));
  EXPECT_FALSE(epochs.Join(5, 3, -1));
  EXPECT_FALSE(epochs.Join(6, 2, -1));  // of another size
  const auto formed = epochs.Join(7, 3, -1);
  ASSERT_TRUE(formed);
  EXPECT_THAT(formed->ranks, ElementsAre(4, 5, 7));
  const uint64_t epoch = formed->epoch;
  EXPECT_EQ(epochs.Invitation(7, "x").rank(), 2);
  EXPECT_EQ(epochs.Invitation(7, "x").size(), 3);
  EXPECT_THAT(epochs.TakeId(5, Id(epoch, "x")), IsEmpty());  // not asked
  EXPECT_THAT(epochs.TakeId(6, Id(0, "x")), IsEmpty());      // waits
  EXPECT_THAT(epochs.TakeId(4, Id(epoch + 1, "x")), IsEmpty());
  EXPECT_THAT(epochs.TakeId(4, Id(epoch, "")), IsEmpty());
  EXPECT_THAT(epochs.TakeId(4, Id(epoch, "x")), ElementsAre(4, 5, 7));
  EXPECT_THAT(epochs.TakeId(4, Id(epoch, "y")), IsEmpty());
  // A rank that comes later waits for others.
  EXPECT_FALSE(epochs.Join(8, 3, -1));
  EXPECT_EQ(epochs.Join(9, 2, -1)->epoch, epoch + 1);
}

TEST(EpochsTest, WhoHeldAPlaceGetsItAgainAndWhoLeavesWaitsNoMore) {
  Epochs epochs;
  EXPECT_FALSE(epochs.Join(0, 3, -1));
  epochs.Leave(0);
  EXPECT_FALSE(epochs.Join(1, 3, -1));
  EXPECT_FALSE(epochs.Join(2, 3, 0));
  EXPECT_THAT(epochs.Join(3, 3, 2)->ranks, ElementsAre(2, 1, 3));
  for (const int rank : {1, 2, 3}) epochs.Leave(rank);
  // Two want the same, and one what there is not.
  EXPECT_FALSE(epochs.Join(4, 3, 1));
  EXPECT_FALSE(epochs.Join(5, 3, 1));
  EXPECT_THAT(epochs.Join(6, 3, 99)->ranks, ElementsAre(5, 4, 6));
}

}  // namespace
}  // namespace epic::coordinator
