#include "worker/rank/message_policy.h"

#include <gtest/gtest.h>

#include "base/sim_loop.h"
#include "cluster/transport/loopback_transport.h"
#include "worker/rank/rank.h"
#include "worker/testing/fake_coordinator.h"
#include "worker/testing/held_experts.h"
#include "worker/testing/one_layer_model.h"

namespace epic::worker {
namespace {

// A rank that holds all experts itself.
class MessagePolicyTest : public testing::Test {
 protected:
  MessagePolicyTest() {
    rank_.Serve(engine_, model_, {});
    coordinator_.Welcome(0);
  }

  static v1::WorkerIdentity BothRoles() {
    v1::WorkerIdentity identity;
    identity.set_attention(true);
    identity.set_experts(true);
    return identity;
  }

  FakeCoordinator coordinator_;
  SimLoop loop_;
  SeededRandom random_{1};
  cluster::LoopbackNetwork network_;
  cluster::LoopbackTransport transport_{network_, 0, 9};
  HeldExperts slots_;
  MessagePolicy policy_{OneLayerModel::kShape, {}, loop_, transport_, slots_, true};
  OneLayerModel model_{policy_.exchange()};
  PageLedger pages_{4, [](int32_t) {}};
  Engine engine_{{.scheduler = {}, .max_model_len = 64}, model_, pages_};
  Rank rank_{{loop_, loop_, random_, RealThreads()},
             BothRoles(),
             coordinator_.dialer(),
             policy_,
             {}};
};

TEST_F(MessagePolicyTest, ServingItsOwnRowsIsWorkAndMakesTheTicketReady) {
  EXPECT_FALSE(policy_.CanGoOn());
  kernels::StepPlan plan;
  plan.token_ids = {1};
  model_.Begin(plan);
  ASSERT_TRUE(model_.Advance().ok());  // the rows are sent off
  EXPECT_TRUE(policy_.CanGoOn());
  EXPECT_TRUE(policy_.computing());
  EXPECT_FALSE(policy_.HasReadyTicket());
  EXPECT_TRUE(*policy_.Turn());
  EXPECT_EQ(policy_.turns_served(), 1);
  // The last answer came from here: nothing will arrive to wake the rank up.
  EXPECT_TRUE(policy_.HasReadyTicket());
  EXPECT_FALSE(policy_.CanGoOn());
  EXPECT_FALSE(*policy_.Turn());
  EXPECT_EQ(*model_.Advance(), TokenModel::Progress::kDone);
  EXPECT_FALSE(policy_.HasReadyTicket());
}

TEST_F(MessagePolicyTest, ExpertsToLoadAreWork) {
  v1::ControlMessage message;
  message.mutable_place_experts()->set_order(1);
  coordinator_.Say(message);
  EXPECT_TRUE(policy_.CanGoOn());
  EXPECT_TRUE(rank_.CanGoOn());
  EXPECT_TRUE(*policy_.Turn());
  EXPECT_FALSE(policy_.CanGoOn());
}

TEST_F(MessagePolicyTest, ARankComputesARequestWithoutSleepingOnIt) {
  coordinator_.Start(1, 5);
  for (int turn = 0; rank_.CanGoOn(); ++turn) {
    ASSERT_LT(turn, 100);
    EXPECT_EQ(rank_.wait_max(), absl::ZeroDuration());
    rank_.Turn();
  }
  EXPECT_FALSE(engine_.busy());
  EXPECT_EQ(coordinator_.Count(v1::ControlMessage::kStep), 5);
  EXPECT_EQ(rank_.asleep_with_work(), absl::ZeroDuration());
}

}  // namespace
}  // namespace epic::worker
