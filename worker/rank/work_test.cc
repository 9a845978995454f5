#include "worker/rank/work.h"

#include <optional>
#include <vector>

#include "base/sim_loop.h"
#include "cluster/transport/loopback_transport.h"
#include "cluster/transport/peer_network.h"
#include "gtest/gtest.h"
#include "worker/testing/one_layer_model.h"
#include "worker/testing/toy_experts.h"

namespace epic::worker {
namespace {

// Has room for experts, and holds all of them from the start.
class HeldExperts : public ExpertSlots {
 public:
  HeldExperts() {
    for (const int expert : {0, 1}) toy_.Hold(0, expert);
  }
  void Order(ExpertOrder order) override { order_ = std::move(order); }
  bool loading() const override { return order_.has_value(); }
  std::optional<ExpertOutcome> Advance() override {
    order_.reset();
    return std::nullopt;
  }
  int slots() const override { return 2; }
  int64_t order_bytes() const override { return 0; }
  int64_t order_total_bytes() const override { return 0; }
  bool Holds(int layer, int expert) const override { return toy_.Holds(layer, expert); }
  void Compute(int layer, kernels::Tensor rows, std::span<const kernels::ExpertRow> pairs,
               kernels::Tensor out) override {
    toy_.Compute(layer, rows, pairs, out);
  }

 private:
  ToyExperts toy_;
  std::optional<ExpertOrder> order_;
};

// A rank that holds all experts itself.
class CanGoOnTest : public testing::Test {
 protected:
  CanGoOnTest() { sequences_.Serve(engine_, {}); }

  void StartSequence() {
    v1::ControlMessage message;
    v1::StartSequence& start = *message.mutable_start();
    start.set_sequence(1);
    start.set_attempt(1);
    start.add_prompt(1);
    start.set_max_tokens(1);
    start.set_logprobs(-1);
    start.mutable_sampling()->set_top_p(1);
    start.mutable_sampling()->set_repetition_penalty(1);
    sequences_.OnMessage(message);
  }
  bool CanGoOn() const { return worker::CanGoOn(sequences_, exchange_, service_); }

  SimLoop loop_;
  cluster::LoopbackNetwork network_;
  cluster::LoopbackTransport transport_{network_, 0, 9};
  cluster::PeerNetwork peers_{transport_};
  HeldExperts slots_;
  MessageExchange exchange_{OneLayerModel::kShape, {}, loop_, peers_, slots_};
  OneLayerModel model_{exchange_};
  PageLedger pages_{4, [](int32_t) {}};
  Engine engine_{{.scheduler = {}, .max_model_len = 64}, model_, pages_};
  WorkerService sequences_{loop_};
  RankService service_{loop_, exchange_, &slots_, {}};
};

TEST_F(CanGoOnTest, WithNothingToDoARankMaySleep) { EXPECT_FALSE(CanGoOn()); }

TEST_F(CanGoOnTest, AnAnswerOfTheRanksOwnExpertsIsWork) {
  StartSequence();
  for (int turn = 0; turn < 2; ++turn) {
    ASSERT_FALSE(sequences_.waiting());
    ASSERT_TRUE(CanGoOn());
    sequences_.Advance();
  }
  ASSERT_TRUE(sequences_.waiting());
  EXPECT_TRUE(exchange_.serving());
  EXPECT_TRUE(CanGoOn());
  // The last answer comes from here: nothing will arrive to wake the rank up.
  EXPECT_TRUE(exchange_.Serve());
  EXPECT_FALSE(exchange_.serving());
  EXPECT_TRUE(sequences_.waiting());
  EXPECT_TRUE(CanGoOn());
  sequences_.Advance();
  EXPECT_FALSE(sequences_.busy());
  EXPECT_FALSE(CanGoOn());
}

TEST_F(CanGoOnTest, ExpertsToLoadAreWork) {
  v1::ControlMessage message;
  message.mutable_place_experts()->set_order(1);
  EXPECT_TRUE(service_.OnMessage(message));
  EXPECT_TRUE(CanGoOn());
  service_.Advance();
  EXPECT_FALSE(CanGoOn());
}

class SleepMeterTest : public testing::Test {
 protected:
  // One turn, with a sleep of 3 s before it.
  double Turn(int64_t inputs_before, int64_t inputs_after, bool worked) {
    meter_.Sleep(now_, inputs_before);
    now_ += absl::Seconds(3);
    meter_.Wake(now_);
    if (worked) meter_.Worked(inputs_after);
    return absl::ToDoubleSeconds(meter_.asleep_with_work());
  }

  SleepMeter meter_;
  absl::Time now_ = absl::UnixEpoch();
};

TEST_F(SleepMeterTest, ASleepThatNothingEndedMustEndInNoWork) {
  EXPECT_EQ(Turn(5, 5, false), 0);  // nothing to do
  EXPECT_EQ(Turn(5, 6, true), 0);   // what arrived gave work
  EXPECT_EQ(Turn(6, 6, true), 3);
  EXPECT_EQ(Turn(6, 6, true), 6);
}

TEST_F(SleepMeterTest, ASleepIsJudgedOnceAndTurnsWithoutOneAreNot) {
  EXPECT_EQ(Turn(0, 0, true), 3);
  meter_.Worked(0);
  meter_.Wake(now_ + absl::Seconds(9));
  meter_.Worked(0);
  EXPECT_EQ(meter_.asleep_with_work(), absl::Seconds(3));
}

}  // namespace
}  // namespace epic::worker
