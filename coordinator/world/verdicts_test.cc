#include "coordinator/world/verdicts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using Kind = Ruling::Kind;

// Ranks 0 and 1 compute sequences; rank 2 alone holds some expert.
class Facts : public LinkFacts {
 public:
  bool IsMember(int rank) const override { return rank <= 2; }
  bool Needs(int rank, int other) const override { return rank < 2 && other == 2; }
  bool HasElsewhere(int rank) const override { return has_elsewhere; }
  absl::Time JoinedAt(int rank) const override {
    return absl::UnixEpoch() + absl::Seconds(rank == youngest ? 9 : 0);
  }
  bool has_elsewhere = true;
  int youngest = 0;
};

class VerdictsTest : public testing::Test {
 protected:
  std::vector<Kind> Kinds(absl::Duration after) {
    std::vector<Kind> kinds;
    for (const Ruling& ruling : verdicts_.JudgeBrokenLinks(start_ + after, facts_)) {
      last_ = ruling;
      kinds.push_back(ruling.kind);
    }
    return kinds;
  }

  Verdicts verdicts_{{}, absl::Milliseconds(500)};
  Facts facts_;
  Ruling last_;
  const absl::Time start_ = absl::UnixEpoch() + absl::Hours(1);
};

TEST_F(VerdictsTest, SequencesLeaveARankThatCannotReachTheOnlyHolder) {
  verdicts_.links().Accuse(0, 2, "timed out", start_);
  EXPECT_THAT(Kinds(absl::Milliseconds(400)), IsEmpty());
  EXPECT_THAT(Kinds(absl::Milliseconds(500)),
              testing::ElementsAre(Kind::kLinkBroken, Kind::kMoveSequences));
  EXPECT_EQ(last_.rank, 0);
  EXPECT_EQ(verdicts_.Avoided(0), "it cannot reach rank 2");
  EXPECT_EQ(verdicts_.Avoided(1), "");
  // It is said once.
  EXPECT_THAT(Kinds(absl::Milliseconds(550)), IsEmpty());
  verdicts_.links().Withdraw(0, 2);
  EXPECT_THAT(Kinds(absl::Milliseconds(600)), testing::ElementsAre(Kind::kLinkHealed));
  EXPECT_EQ(verdicts_.Avoided(0), "");
}

TEST_F(VerdictsTest, WithNowhereToGoTheYoungerEndIsRevokedUnlessFrozen) {
  facts_.has_elsewhere = false;
  verdicts_.links().Accuse(0, 2, "timed out", start_);
  verdicts_.Freeze(true);
  EXPECT_THAT(Kinds(absl::Seconds(1)), testing::ElementsAre(Kind::kLinkBroken));
  verdicts_.Freeze(false);
  EXPECT_THAT(Kinds(absl::Seconds(1)), testing::ElementsAre(Kind::kRevoke));
  EXPECT_EQ(last_.rank, 0);
  EXPECT_FALSE(last_.unexplained);
  // At most one within a second.
  facts_.youngest = 2;
  EXPECT_THAT(Kinds(absl::Milliseconds(1900)), IsEmpty());
  EXPECT_THAT(Kinds(absl::Seconds(2)), testing::ElementsAre(Kind::kRevoke));
  EXPECT_EQ(last_.rank, 2);
}

TEST_F(VerdictsTest, TwoWitnessesConvictAtOnceAndCallItADeath) {
  verdicts_.links().Accuse(0, 2, "timed out", start_);
  EXPECT_FALSE(verdicts_.JudgeAccusations(start_));
  verdicts_.links().Accuse(1, 2, "timed out", start_);
  verdicts_.Freeze(true);
  EXPECT_FALSE(verdicts_.JudgeAccusations(start_));
  verdicts_.Freeze(false);
  const auto ruling = verdicts_.JudgeAccusations(start_);
  ASSERT_TRUE(ruling);
  EXPECT_EQ(ruling->rank, 2);
  EXPECT_TRUE(ruling->unexplained);
  verdicts_.Forget(2);
  EXPECT_FALSE(verdicts_.JudgeAccusations(start_ + absl::Seconds(5)));
}

TEST_F(VerdictsTest, WhoStopsIsRevokedAndFrozenOnlyNamedOnce) {
  const auto judge = [&](absl::Duration after) { return verdicts_.JudgeProgress(start_ + after); };
  // The judge looks every 50 ms; a rank that says nothing for 2 s has stopped.
  const auto silent = [&](absl::Duration from) {
    int rulings = 0;
    std::optional<Ruling> last;
    for (int turn = 0; turn < 50; ++turn) {
      if (auto ruling = judge(from + turn * absl::Milliseconds(50))) {
        ++rulings;
        last = std::move(ruling);
      }
    }
    return std::pair{rulings, last};
  };
  verdicts_.liveness().Report(1, {}, start_);
  verdicts_.Freeze(true);
  const auto [named, suspect] = silent(absl::ZeroDuration());
  EXPECT_EQ(named, 1);
  EXPECT_EQ(suspect->kind, Kind::kSuspect);
  verdicts_.Freeze(false);
  const auto ruling = judge(absl::Milliseconds(2500));
  ASSERT_TRUE(ruling);
  EXPECT_EQ(ruling->kind, Kind::kRevoke);
  EXPECT_THAT(ruling->evidence, HasSubstr("no report for"));
  // What a refused rank does not report is nobody's concern.
  verdicts_.Disregard(1);
  EXPECT_FALSE(judge(absl::Milliseconds(2550)));
}

}  // namespace
}  // namespace epic::coordinator
