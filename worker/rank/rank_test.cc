#include "worker/rank/rank.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/sim_loop.h"
#include "worker/testing/fake_coordinator.h"
#include "worker/testing/toy_model.h"

namespace epic::worker {
namespace {

constexpr absl::Duration kWaitMax = absl::Milliseconds(50);
constexpr absl::Duration kLeaveTime = absl::Seconds(20);

struct FakePolicy : ExchangePolicy {
  void Attach(Rank& rank) override { attached = &rank; }
  void Introduce(v1::WorkerIdentity& identity) const override { identity.set_epoch(7); }
  void Connect(cluster::ControlLink* link) override { connected = link != nullptr; }
  bool OnMessage(const v1::ControlMessage& message) override {
    return message.has_welcome() || message.has_revoked();
  }
  absl::StatusOr<bool> Turn() override { return turn; }
  bool CanGoOn() const override { return can_go_on; }
  bool HasReadyTicket() const override { return ready_ticket; }
  absl::Duration wait_max() const override { return kWaitMax; }
  int64_t arrivals() const override { return arrived; }
  void FillReport(v1::RankReport& report) const override { report.set_activity(activity); }
  void End() override { ended = true; }
  bool MayEnd() const override { return may_end; }

  Rank* attached = nullptr;
  bool connected = false;
  absl::StatusOr<bool> turn = false;
  bool can_go_on = false;
  bool ready_ticket = false;
  int64_t arrived = 0;
  v1::RankReport::Activity activity = v1::RankReport::IDLE;
  bool ended = false;
  bool may_end = true;
};

class RankTest : public testing::Test {
 protected:
  RankTest() {
    Make({.asks_to_leave = true, .leave_time = kLeaveTime});
    rank_->Serve(engine_, model_, {});
    coordinator_.Welcome(3);
  }

  void Make(RankOptions options) {
    rank_.reset();
    v1::WorkerIdentity identity;
    identity.set_attention(true);
    rank_.emplace(Env{loop_, loop_, random_, RealThreads()}, identity, coordinator_.dialer(),
                  policy_, options,
                  RankHandlers{.on_welcome = [this](int rank, uint64_t generation) {
                    welcomed_ = {rank, generation};
                  }});
  }
  void Turn() {
    loop_.RunPosted();
    rank_->Turn();
  }
  // Until nothing can go on.
  void Run() {
    for (int turn = 0; turn == 0 || rank_->CanGoOn(); ++turn) {
      ASSERT_LT(turn, 100);
      Turn();
      if (rank_->over()) return;
    }
  }
  int goodbyes() const { return coordinator_.Count(v1::ControlMessage::kGoodbye); }
  int requests_to_leave() const { return coordinator_.Count(v1::ControlMessage::kDrain); }

  FakeCoordinator coordinator_;
  SimLoop loop_;
  SeededRandom random_{1};
  FakePolicy policy_;
  ToyModel model_{11, 4};
  PageLedger pages_{4, [this](int32_t page) { model_.ErasePage(page); }};
  Engine engine_{{.scheduler = {}, .max_model_len = 64}, model_, pages_};
  std::pair<int, uint64_t> welcomed_;
  std::optional<Rank> rank_;
};

TEST_F(RankTest, SaysWhoItIsAndLearnsItsNumber) {
  EXPECT_EQ(policy_.attached, &*rank_);
  EXPECT_TRUE(policy_.connected);
  EXPECT_TRUE(coordinator_.link().hello.worker().attention());
  EXPECT_EQ(coordinator_.link().hello.worker().epoch(), 7u);
  EXPECT_EQ(welcomed_, std::pair(3, coordinator_.link().hello.generation()));
  EXPECT_EQ(coordinator_.Count(v1::ControlMessage::kReady), 1);
}

TEST_F(RankTest, SleepsOnlyWhileNothingCanGoOn) {
  EXPECT_FALSE(rank_->CanGoOn());
  EXPECT_EQ(rank_->wait_max(), kWaitMax);
  policy_.can_go_on = true;
  EXPECT_EQ(rank_->wait_max(), absl::ZeroDuration());
  policy_.can_go_on = false;

  model_.set_turns(4);  // the first one waits
  coordinator_.Start(1, 1);
  EXPECT_TRUE(rank_->CanGoOn());
  Turn();
  EXPECT_FALSE(rank_->CanGoOn());
  policy_.ready_ticket = true;
  EXPECT_TRUE(rank_->CanGoOn());
  EXPECT_EQ(rank_->wait_max(), absl::ZeroDuration());
}

// A clock that moves whenever it is read, as real ones do.
class MovingClock : public Clock {
 public:
  absl::Time Now() const override { return now_ += absl::Nanoseconds(30); }

 private:
  mutable absl::Time now_ = absl::UnixEpoch();
};

TEST_F(RankTest, ARankThatCanGoOnDoesNotSleepAtAll) {
  MovingClock clock;
  v1::WorkerIdentity identity;
  identity.set_attention(true);
  FakePolicy policy;
  Rank rank({clock, loop_, random_, RealThreads()}, identity, coordinator_.dialer(), policy, {});
  policy.can_go_on = true;
  EXPECT_EQ(rank.wait_max(), absl::ZeroDuration());
  policy.can_go_on = false;
  EXPECT_EQ(rank.wait_max(), kWaitMax);
}

TEST_F(RankTest, MeasuresHowLongItSleptOnWork) {
  model_.set_turns(4);
  coordinator_.Start(1, 1);
  Turn();  // waits
  loop_.Advance(absl::Milliseconds(30));
  ++policy_.arrived;
  Turn();  // goes on, with what has arrived
  EXPECT_EQ(rank_->asleep_with_work(), absl::ZeroDuration());
  Turn();  // waits again
  loop_.Advance(absl::Milliseconds(40));
  Turn();  // ends, although nothing has arrived
  EXPECT_FALSE(engine_.busy());
  EXPECT_EQ(rank_->asleep_with_work(), absl::Milliseconds(40));
  loop_.Advance(cluster::kReportInterval);
  EXPECT_EQ(coordinator_.LastReport().asleep_with_work_seconds(), 0.04);
}

TEST_F(RankTest, MeasuresSleepOnWorkOfTheExchangeToo) {
  Turn();
  loop_.Advance(absl::Milliseconds(30));
  policy_.turn = true;
  Turn();
  EXPECT_EQ(rank_->asleep_with_work(), absl::Milliseconds(30));
}

TEST_F(RankTest, ReportsWhatItDoesTenTimesASecond) {
  loop_.Advance(absl::Milliseconds(1000));
  EXPECT_EQ(coordinator_.Count(v1::ControlMessage::kRankReport), 11);
  EXPECT_EQ(coordinator_.LastReport().activity(), v1::RankReport::IDLE);
  model_.set_turns(4);
  coordinator_.Start(1, 1);
  Turn();
  loop_.Advance(cluster::kReportInterval);
  EXPECT_EQ(coordinator_.LastReport().activity(), v1::RankReport::COMPUTING);
  EXPECT_EQ(coordinator_.LastReport().ticks(), 1u);
  policy_.activity = v1::RankReport::WAITING;
  loop_.Advance(cluster::kReportInterval);
  EXPECT_EQ(coordinator_.LastReport().activity(), v1::RankReport::WAITING);
}

TEST_F(RankTest, ReportsInLongOperationsToo) {
  const int before = coordinator_.Count(v1::ControlMessage::kRankReport);
  loop_.Advance(absl::ZeroDuration());
  rank_->ReportProgress();  // too early
  EXPECT_EQ(coordinator_.Count(v1::ControlMessage::kRankReport), before + 1);
  loop_.Advance(cluster::kReportInterval * 0.99);
  rank_->ReportProgress();
  EXPECT_EQ(coordinator_.Count(v1::ControlMessage::kRankReport), before + 1);
}

TEST_F(RankTest, LoadsBeforeItServes) {
  Make({});
  rank_->ReportLoading(5, 10);
  loop_.Advance(absl::ZeroDuration());
  EXPECT_EQ(coordinator_.LastReport().activity(), v1::RankReport::LOADING);
  EXPECT_EQ(coordinator_.link().messages[0].load_progress().loaded_bytes(), 5);
}

TEST_F(RankTest, ARevokedRankJoinsAsAnotherGenerationWithoutSequences) {
  coordinator_.Start(1, 50);
  Turn();
  const uint64_t before = coordinator_.link().hello.generation();
  coordinator_.Revoke();
  Turn();
  EXPECT_EQ(coordinator_.dials(), 2);
  EXPECT_NE(coordinator_.link().hello.generation(), before);
  EXPECT_EQ(pages_.used_count(), 0);
  EXPECT_EQ(coordinator_.Count(v1::ControlMessage::kReady), 1);
}

TEST_F(RankTest, ADrainedRankFinishesItsSequencesThenSaysGoodbyeAndWaitsForTheEndOfTheLink) {
  coordinator_.Start(1, 5);
  coordinator_.Drain();
  Turn();
  EXPECT_EQ(goodbyes(), 0);
  EXPECT_FALSE(policy_.ended);
  Run();
  EXPECT_EQ(coordinator_.Count(v1::ControlMessage::kStep), 5);
  EXPECT_TRUE(policy_.ended);
  EXPECT_EQ(goodbyes(), 1);
  EXPECT_EQ(requests_to_leave(), 0);  // it was told to
  Turn();
  EXPECT_FALSE(rank_->over());
  EXPECT_EQ(goodbyes(), 1);
  coordinator_.Close(absl::AbortedError("out of the world"));
  Turn();
  EXPECT_TRUE(rank_->over());
  EXPECT_TRUE(rank_->status().ok());
  EXPECT_EQ(coordinator_.dials(), 1);
}

TEST_F(RankTest, ACoordinatorThatDoesNotAnswerAGoodbyeIsNotWaitedForLong) {
  coordinator_.Drain();
  Turn();
  EXPECT_EQ(goodbyes(), 1);
  loop_.Advance(absl::Milliseconds(900));
  Turn();
  EXPECT_FALSE(rank_->over());
  loop_.Advance(absl::Milliseconds(200));
  Turn();
  EXPECT_TRUE(rank_->over());
}

TEST_F(RankTest, ARankThatIsToldToEndAsksAndWaitsToBeLetGo) {
  rank_->Drain();
  EXPECT_EQ(requests_to_leave(), 1);
  Turn();
  EXPECT_EQ(goodbyes(), 0);
  coordinator_.Start(1, 5);
  EXPECT_EQ(coordinator_.Count(v1::ControlMessage::kSequenceFailed), 1);
  coordinator_.Drain();
  Turn();
  EXPECT_EQ(goodbyes(), 1);
}

TEST_F(RankTest, ARankThatIsNotLetGoLeavesInTheEndOrWhenItIsToldTwice) {
  rank_->Drain();
  loop_.Advance(kLeaveTime - absl::Milliseconds(1));
  Turn();
  EXPECT_EQ(goodbyes(), 0);
  loop_.Advance(absl::Milliseconds(1));
  Turn();
  EXPECT_EQ(goodbyes(), 1);

  Make({.asks_to_leave = true, .leave_time = kLeaveTime});
  coordinator_.Welcome(4);
  rank_->Drain();
  rank_->Drain();
  EXPECT_EQ(requests_to_leave(), 1);
  Turn();
  EXPECT_EQ(goodbyes(), 1);
}

TEST_F(RankTest, ASupervisedRankDoesNotAsk) {
  Make({.asks_to_leave = false, .leave_time = absl::ZeroDuration()});
  coordinator_.Welcome(4);
  rank_->Drain();
  EXPECT_EQ(requests_to_leave(), 0);
  Turn();
  EXPECT_EQ(goodbyes(), 1);
}

TEST_F(RankTest, TheNextCoordinatorIsAskedToo) {
  rank_->Drain();
  coordinator_.Close(absl::AbortedError("another term"));
  Turn();
  EXPECT_EQ(coordinator_.dials(), 2);
  EXPECT_EQ(requests_to_leave(), 1);
}

TEST_F(RankTest, NobodyHearsTheGoodbyeOfARankThatWasNotWelcomed) {
  Make({.asks_to_leave = false, .leave_time = absl::ZeroDuration()});
  rank_->Drain();
  Turn();
  EXPECT_TRUE(rank_->over());
  EXPECT_EQ(goodbyes(), 0);
}

TEST_F(RankTest, ARankThatOthersNeedStays) {
  policy_.may_end = false;
  coordinator_.Drain();
  Turn();
  EXPECT_TRUE(policy_.ended);
  EXPECT_EQ(goodbyes(), 0);
  policy_.may_end = true;
  Turn();
  EXPECT_EQ(goodbyes(), 1);
}

TEST_F(RankTest, ARefusalOrAFailureOfTheExchangeEndsTheRank) {
  coordinator_.Close(absl::FailedPreconditionError("another profile"));
  Turn();
  EXPECT_TRUE(rank_->over());
  EXPECT_EQ(rank_->status().message(), "another profile");

  Make({});
  policy_.turn = absl::InternalError("the card is lost");
  Turn();
  EXPECT_TRUE(rank_->over());
  EXPECT_EQ(rank_->status().message(), "the card is lost");
}

}  // namespace
}  // namespace epic::worker
