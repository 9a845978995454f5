#include "coordinator/world/readiness.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

using testing::HasSubstr;

// The parts that the view looks at, filled by hand.
class ReadinessTest : public testing::Test {
 protected:
  int Join(bool attention, bool experts, int64_t slots = 10) {
    v1::ControlHello hello;
    hello.set_generation(1);
    v1::WorkerIdentity& worker = *hello.mutable_worker();
    worker.set_attention(attention);
    worker.set_experts(experts);
    worker.set_address("10.0.0.1:7000");
    worker.set_layer_count(2);
    worker.set_first_expert_layer(1);
    worker.set_expert_count(10);
    worker.set_expert_slots(slots);
    const int rank = *members_.Join(hello, absl::UnixEpoch());
    if (!group_) {
      group_.emplace(*members_.shape(), 1, proofs_, MapPublisherOptions{.term = 7});
    }
    group_->Join(rank, members_.at(rank));
    if (attention) members_.at(rank).ready.emplace();
    return rank;
  }
  Placement Plan() { return group_->Plan(false); }
  void Answer(int rank, const Placement& placement) {
    for (const auto& [to, order] : placement.orders) {
      if (to != rank) continue;
      v1::ExpertsReady ready;
      ready.set_order(order.order());
      EXPECT_TRUE(group_->hosts().OnReady(rank, ready).ok());
    }
  }
  std::string Why() { return std::string(readiness_.Ready().message()); }

  Membership members_;
  ExpertProofs proofs_;
  Drains drains_{absl::Seconds(10)};
  Verdicts verdicts_{{}, absl::Milliseconds(500)};
  std::optional<ExpertGroup> group_;
  const Readiness readiness_{members_, drains_, verdicts_, group_, /*expect_ranks=*/2};
};

TEST_F(ReadinessTest, SaysWhatIsMissing) {
  EXPECT_EQ(Why(), "waiting for ranks: 0 of 2");
  Join(true, false);
  Join(false, true, 4);
  EXPECT_EQ(Why(), "10 experts need a slot each, and 6 slots are missing");
  EXPECT_EQ(readiness_.State(1), "loading");
  Join(false, true, 6);
  EXPECT_EQ(Why(), "waiting for more ranks to join");
  group_->Start();
  const Placement placement = Plan();
  EXPECT_EQ(Why(), "10 of 10 experts unhosted; ranks 1, 2 load them");
  EXPECT_FALSE(readiness_.ReadySoon().ok());  // no map yet: nobody takes sequences
  Answer(1, placement);
  Answer(2, placement);
  EXPECT_FALSE(readiness_.Routable(0));
  Plan();
  EXPECT_TRUE(readiness_.Ready().ok());
  EXPECT_TRUE(readiness_.Routable(0));
  EXPECT_EQ(readiness_.State(1), "ready");
}

TEST_F(ReadinessTest, DrainsAvoidedAndRefusedRanksGetNothing) {
  Join(true, true);
  Join(true, true);
  group_->Start();
  const Placement placement = Plan();
  Answer(0, placement);
  Answer(1, placement);
  Plan();
  EXPECT_EQ(readiness_.CountRoutable(-1), 2);
  EXPECT_TRUE(readiness_.CheckDispensable(0).ok());
  drains_.Begin(0, DrainState::kByOperator, absl::UnixEpoch());
  EXPECT_EQ(readiness_.State(0), "draining");
  EXPECT_EQ(readiness_.CountRoutable(-1), 1);
  EXPECT_THAT(std::string(readiness_.CheckDispensable(1).message()),
              HasSubstr("no rank but rank 1 takes requests"));
  members_.at(1).refusal = "it lies";
  EXPECT_EQ(readiness_.State(1), "refused");
  EXPECT_FALSE(readiness_.ReadySoon().ok());
}

TEST_F(ReadinessTest, ExpertsThatAreBeingLoadedWillBeThereSoon) {
  Join(true, true);
  Join(false, true);
  group_->Start();
  const Placement placement = Plan();
  Answer(0, placement);
  Answer(1, placement);
  Plan();
  group_->Remove(1);
  members_.Remove(1);
  Plan();
  EXPECT_TRUE(readiness_.ReadySoon().ok());
  EXPECT_THAT(Why(), HasSubstr("experts unhosted; ranks 0 load them"));
  EXPECT_THAT(std::string(readiness_.CheckDispensable(0).message()), HasSubstr("lack 10 slots"));
}

}  // namespace
}  // namespace epic::coordinator
