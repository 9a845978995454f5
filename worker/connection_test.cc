#include "worker/connection.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/sim_loop.h"
#include "worker/testing/fake_coordinator.h"

namespace epic::worker {
namespace {

class ConnectionTest : public testing::Test {
 protected:
  FakeCoordinator coordinator_;
  SimLoop loop_;
  SeededRandom random_{1};
  int messages_ = 0;
  std::vector<bool> links_;  // whether each was one
  Connection connection_{
      {loop_, loop_, random_, RealThreads()},
      coordinator_.dialer(),
      {.identity =
           [this] {
             v1::WorkerIdentity identity;
             identity.set_epoch_position(coordinator_.dials());
             return identity;
           },
       .on_message = [this](const v1::ControlMessage&) { ++messages_; },
       .on_link = [this](cluster::ControlLink* link) { links_.push_back(link != nullptr); }}};
};

TEST_F(ConnectionTest, EachDialIsAnotherGenerationAndSaysWhatHoldsThen) {
  EXPECT_EQ(coordinator_.dials(), 0);
  connection_.Dial();
  EXPECT_EQ(coordinator_.link().hello.generation(), connection_.generation());
  EXPECT_FALSE(coordinator_.link().hello.build_id().empty());
  const uint64_t first = connection_.generation();
  connection_.Renew();
  EXPECT_TRUE(coordinator_.link().open);  // its handler may be on the stack
  loop_.RunPosted();
  EXPECT_EQ(coordinator_.dials(), 2);
  EXPECT_NE(connection_.generation(), first);
  EXPECT_EQ(coordinator_.link().hello.worker().epoch_position(), 1);
  EXPECT_EQ(links_, (std::vector{true, false, true}));
}

TEST_F(ConnectionTest, ALinkThatIsLeftForTwoReasonsIsLeftOnce) {
  connection_.Dial();
  coordinator_.Revoke();
  connection_.Renew();
  coordinator_.Close(absl::AbortedError("out of the world"));
  loop_.RunPosted();
  EXPECT_EQ(messages_, 1);
  EXPECT_EQ(coordinator_.dials(), 2);
}

TEST_F(ConnectionTest, ARefusedWorkerDialsNoMore) {
  connection_.Dial();
  coordinator_.Close(absl::FailedPreconditionError("another profile"));
  loop_.RunPosted();
  EXPECT_EQ(connection_.refusal().message(), "another profile");
  EXPECT_EQ(coordinator_.dials(), 1);
  EXPECT_FALSE(coordinator_.link().open);
}

TEST_F(ConnectionTest, ARetiredConnectionEndsWithItsLink) {
  connection_.Dial();
  connection_.Retire();
  EXPECT_TRUE(coordinator_.link().open);
  coordinator_.Close(absl::AbortedError("goodbye"));
  loop_.RunPosted();
  EXPECT_EQ(coordinator_.dials(), 1);
  EXPECT_EQ(links_, (std::vector{true, false}));
}

}  // namespace
}  // namespace epic::worker
