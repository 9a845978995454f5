#include "coordinator/world/drains.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

const absl::Time kStart = absl::UnixEpoch();

// Drains, and what each rank still has.
class DrainsTest : public testing::Test {
 protected:
  Drains::Due Advance(absl::Duration since_start) {
    return drains_.Advance(kStart + since_start, [this](int rank) { return left_[rank]; });
  }

  Drains drains_{absl::Seconds(10)};
  std::map<int, Drains::Remainder> left_;
};

TEST_F(DrainsTest, ARankMayEndWhenSequencesAndExpertsAreGone) {
  left_[3] = {.sequences = 2, .experts = true};
  drains_.Begin(3, DrainState::kByOperator, kStart);
  EXPECT_TRUE(drains_.draining(3));
  EXPECT_THAT(Advance(absl::Seconds(1)).may_end, IsEmpty());
  left_[3].sequences = 0;
  EXPECT_THAT(Advance(absl::Seconds(2)).may_end, IsEmpty());
  left_[3].experts = false;
  EXPECT_THAT(Advance(absl::Seconds(3)).may_end, ElementsAre(3));
  EXPECT_EQ(drains_.state(3), DrainState::kToldToEnd);
  EXPECT_FALSE(drains_.cancellable(3));
  // It is told once.
  EXPECT_THAT(Advance(absl::Seconds(4)).may_end, IsEmpty());
  drains_.Forget(3);
  EXPECT_FALSE(drains_.draining(3));
}

TEST_F(DrainsTest, SequencesMoveAfterAWhile) {
  left_[1] = {.sequences = 1};
  drains_.Begin(1, DrainState::kRequestedByWorker, kStart);
  EXPECT_THAT(Advance(absl::Seconds(9)).move, IsEmpty());
  EXPECT_THAT(Advance(absl::Seconds(10)).move, ElementsAre(1));
  // The time counts from the first wish on.
  drains_.Escalate(1, DrainState::kMustEnd);
  EXPECT_THAT(Advance(absl::Seconds(11)).move, ElementsAre(1));
}

TEST_F(DrainsTest, OneThatMustEndDoesNotWaitForItsExperts) {
  left_[1] = left_[2] = {.experts = true};
  drains_.Begin(1, DrainState::kRequestedByWorker, kStart);
  drains_.Begin(2, DrainState::kMustEnd, kStart);
  EXPECT_THAT(drains_.Cancellable(), ElementsAre(1));
  EXPECT_THAT(Advance(absl::ZeroDuration()).may_end, ElementsAre(2));
}

TEST_F(DrainsTest, ACancelledDrainCanBeginAgain) {
  drains_.Begin(1, DrainState::kByOperator, kStart);
  drains_.Cancel(1);
  EXPECT_EQ(drains_.state(1), DrainState::kNone);
  drains_.Begin(1, DrainState::kRequestedByWorker, kStart + absl::Seconds(5));
  left_[1] = {.sequences = 1};
  EXPECT_THAT(Advance(absl::Seconds(14)).move, IsEmpty());
}

TEST_F(DrainsTest, WayBackIsChecked) {
  drains_.Begin(1, DrainState::kRequestedByWorker, kStart);
  EXPECT_DEATH(drains_.Begin(1, DrainState::kByOperator, kStart), "drains already");
  EXPECT_DEATH(drains_.Escalate(1, DrainState::kByOperator), "from drain state 2 to 1");
  drains_.Escalate(1, DrainState::kMustEnd);
  EXPECT_DEATH(drains_.Cancel(1), "drain state 3");
}

}  // namespace
}  // namespace epic::coordinator
