// Ranks that step together in one thread: they take turns, and nobody waits.
#include "worker/rank/lock_step_policy.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/sim_loop.h"
#include "cluster/transport/threads_collective.h"
#include "model/testing/tiny_checkpoint.h"
#include "worker/rank/rank.h"
#include "worker/service/placement_messages.h"
#include "worker/testing/even_map.h"
#include "worker/testing/fake_coordinator.h"

namespace epic::worker {
namespace {

constexpr int kRanks = 2;

// The epochs of one rank. As with NCCL, an epoch ends with the link to the coordinator.
class TestEpochs : public EpochSource {
 public:
  explicit TestEpochs(int rank) : rank_(rank) {}

  void Begin(cluster::ThreadsWorld& epoch) { collective_ = &epoch.end(rank_); }

  int size() const override { return kRanks; }
  void Introduce(v1::WorkerIdentity& identity) const override {
    identity.set_epoch_ranks(kRanks);
  }
  bool outlives_links() const override { return false; }
  void OnLink(cluster::ControlLink* link) override {
    if (link == nullptr) Abort("the link has ended");
  }
  absl::StatusOr<cluster::Collective*> collective() override { return collective_; }
  void Abort(const std::string& reason) override {
    if (collective_ != nullptr) collective_->Abort(reason);
  }
  bool Left() override {
    collective_ = nullptr;
    return true;
  }

 private:
  const int rank_;
  cluster::Collective* collective_ = nullptr;
};

WorkerOptions Options(const std::string& prompt_attention) {
  WorkerOptions options;
  options.model =
      model::WriteCheckpoint(model::TinyConfig(), model::TinyTensors(model::TinyConfig(), 1));
  options.prompt_attention = prompt_attention;
  options.exchange = "mpi";
  options.threads = 1;
  options.max_num_batched_tokens = 16;
  options.max_num_seqs = 4;
  options.max_model_len = 64;
  return LockStepOptions(options, kRanks);
}

v1::WorkerIdentity BothRoles() {
  v1::WorkerIdentity identity;
  identity.set_attention(true);
  identity.set_experts(true);
  return identity;
}

// A process of the world.
struct Node {
  Node(int number, SimLoop& loop, Random& random, const std::string& prompt_attention)
      : number(number),
        plan(*MakeRankPlan(Options(prompt_attention))),
        epochs(number),
        policy(plan, epochs, loop),
        rank({loop, loop, random, RealThreads()}, BothRoles(), coordinator.dialer(), policy,
             {.asks_to_leave = true}) {
    attention = *LoadAttention(plan, loop, [&](int64_t bytes) {
      rank.ReportLoading(bytes, policy.bytes_to_load());
    });
    policy.Start(*attention);
    coordinator.Welcome(number);
  }

  // The coordinator's invitation, with a map that gives each rank half of the experts.
  void Invite(uint64_t epoch) {
    const cluster::ExpertMap map = EvenMap(plan.config, kRanks);
    v1::ControlMessage message;
    v1::JoinEpoch& invitation = *message.mutable_join_epoch();
    invitation.set_epoch(epoch);
    invitation.set_rank(number);
    invitation.set_size(kRanks);
    for (int other = 0; other < kRanks; ++other) invitation.add_ranks(other);
    invitation.mutable_experts()->set_order(1);
    *invitation.mutable_experts()->mutable_layers() = LayersFrom(OrderOf(map, number).wanted);
    *invitation.mutable_map() = ToMessage(map, map.ranks[number]);
    coordinator.Say(message);
  }

  const int number;

  FakeCoordinator coordinator;
  RankPlan plan;
  std::unique_ptr<LoadedAttention> attention;
  TestEpochs epochs;
  LockStepPolicy policy;
  Rank rank;

  int Count(v1::ControlMessage::BodyCase kind) const { return coordinator.Count(kind); }
  bool ready() const { return Count(v1::ControlMessage::kReady) > 0; }
};

class LockStepPolicyTest : public testing::Test {
 protected:
  void Make(const std::string& other_attention = "absorbed") {
    nodes_.push_back(std::make_unique<Node>(0, loop_, random_, "absorbed"));
    nodes_.push_back(std::make_unique<Node>(1, loop_, random_, other_attention));
  }
  void BeginEpoch() {
    epochs_.push_back(std::make_unique<cluster::ThreadsWorld>(kRanks));
    for (const auto& node : nodes_) {
      node->epochs.Begin(*epochs_.back());
      node->Invite(epochs_.size());
    }
  }
  Node& node(int number) { return *nodes_[number]; }
  void Turn() {
    for (const auto& node : nodes_) {
      loop_.RunPosted();
      if (!node->rank.over()) node->rank.Turn();
    }
    loop_.Advance(absl::Milliseconds(1));
  }
  template <class Condition>
  void RunUntil(Condition condition) {
    for (int turn = 0; !condition(); ++turn) {
      ASSERT_LT(turn, 10'000);
      Turn();
    }
  }
  bool AllReady() const { return nodes_[0]->ready() && nodes_[1]->ready(); }

  SimLoop loop_;
  SeededRandom random_{1};
  std::vector<std::unique_ptr<cluster::ThreadsWorld>> epochs_;
  std::vector<std::unique_ptr<Node>> nodes_;
};

TEST_F(LockStepPolicyTest, RanksJoinAnEpochStepTogetherAndEndTogether) {
  Make();
  EXPECT_EQ(node(0).coordinator.link().hello.worker().epoch_ranks(), kRanks);
  Turn();
  loop_.Advance(cluster::kReportInterval);
  EXPECT_EQ(node(0).coordinator.LastReport().activity(), v1::RankReport::LOADING);
  EXPECT_FALSE(node(0).ready());
  BeginEpoch();
  RunUntil([&] { return AllReady(); });

  node(0).coordinator.Start(1, 6);
  RunUntil([&] { return node(0).Count(v1::ControlMessage::kStep) == 6; });

  // Neither ends alone: the other one needs its experts.
  node(0).rank.Drain();
  EXPECT_EQ(node(0).Count(v1::ControlMessage::kDrain), 1);
  for (int turn = 0; turn < 100; ++turn) Turn();
  EXPECT_EQ(node(0).Count(v1::ControlMessage::kGoodbye), 0);
  node(1).coordinator.Start(2, 3);
  RunUntil([&] { return node(1).Count(v1::ControlMessage::kStep) == 3; });
  node(1).coordinator.Drain();
  RunUntil([&] { return node(0).rank.over() && node(1).rank.over(); });
  for (int number = 0; number < kRanks; ++number) {
    EXPECT_EQ(node(number).Count(v1::ControlMessage::kGoodbye), 1);
    EXPECT_TRUE(node(number).rank.status().ok()) << node(number).rank.status();
  }
}

TEST_F(LockStepPolicyTest, AnEpochEndsWithALinkAndTheRanksGoOnInTheNext) {
  Make();
  BeginEpoch();
  RunUntil([&] { return AllReady(); });
  node(0).coordinator.Start(1, 40);
  Turn();
  node(0).coordinator.Close(absl::AbortedError("another term"));
  for (int turn = 0; turn < 20; ++turn) Turn();
  EXPECT_EQ(node(0).coordinator.dials(), 2);
  EXPECT_FALSE(node(0).ready());  // on the new link
  EXPECT_GT(node(0).coordinator.link().hello.worker().held_experts_size(), 0);
  EXPECT_EQ(node(0).attention->pages.used_count(), 0);
  node(1).coordinator.Close(absl::AbortedError("another term"));
  for (int turn = 0; turn < 20; ++turn) Turn();
  BeginEpoch();
  RunUntil([&] { return AllReady(); });
  node(0).coordinator.Start(1, 6);
  RunUntil([&] { return node(0).Count(v1::ControlMessage::kStep) == 6; });
  EXPECT_FALSE(node(0).rank.over() || node(1).rank.over());
}

TEST_F(LockStepPolicyTest, RanksOfDifferentProfilesAreNoWorld) {
  Make("expanded");
  BeginEpoch();
  // The first one to notice ends the epoch; for the other one that is the end of an epoch.
  RunUntil([&] { return node(0).rank.over(); });
  EXPECT_TRUE(absl::IsFailedPrecondition(node(0).rank.status())) << node(0).rank.status();
  for (int turn = 0; turn < 20; ++turn) Turn();
  EXPECT_FALSE(node(1).rank.over() || node(1).ready());
}

TEST_F(LockStepPolicyTest, ARevokedRankLeavesAnEpochThatStandsStill) {
  Make();
  BeginEpoch();
  RunUntil([&] { return AllReady(); });
  for (int turn = 0; turn < 100; ++turn) Turn();
  // The other rank hangs. What it had said before is used up first.
  for (int turn = 0; turn < 20; ++turn) {
    loop_.Advance(absl::Milliseconds(20));
    node(0).rank.Turn();
  }
  v1::ControlMessage message;
  message.mutable_revoked()->set_reason("silent for 2 s");
  node(0).policy.OnMessage(message);
  EXPECT_EQ(node(0).coordinator.LastReport().activity(), v1::RankReport::IDLE);
  for (int second = 0; second < 12; ++second) {
    loop_.Advance(absl::Seconds(1));
    node(0).rank.Turn();
    node(0).rank.Turn();
  }
  EXPECT_EQ(node(0).coordinator.LastReport().activity(), v1::RankReport::LOADING);
  EXPECT_FALSE(node(0).rank.over());
}

TEST_F(LockStepPolicyTest, ARankThatIsToldToEndBeforeThereIsAnEpochEnds) {
  Make();
  Turn();
  node(0).rank.Drain();
  for (int turn = 0; turn < 3; ++turn) Turn();
  EXPECT_EQ(node(0).Count(v1::ControlMessage::kGoodbye), 1);
  EXPECT_FALSE(node(1).rank.over());
}

}  // namespace
}  // namespace epic::worker
