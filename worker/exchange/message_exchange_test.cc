#include "worker/exchange/message_exchange.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/sim_loop.h"
#include "cluster/transport/loopback_transport.h"
#include "cluster/transport/peer_network.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/testing/toy_experts.h"
#include "worker/testing/toy_rows.h"

namespace epic::worker {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr ExchangeShape kShape{
    .layer_count = 3, .expert_count = 6, .experts_per_token = 2, .hidden = 4};
constexpr ExchangeLimits kLimits{.tile_rows_max = 8};

// Rank 0 has attention, ranks 1 .. 3 experts; expert e of each layer is on rank 1 + e % 3.
class MessageExchangeTest : public testing::Test {
 protected:
  struct Rank {
    ToyExperts experts;
    std::unique_ptr<cluster::LoopbackTransport> transport;
    std::unique_ptr<cluster::PeerNetwork> network;
    std::unique_ptr<MessageExchange> exchange;
  };

  MessageExchangeTest() {
    map_.version = {1, 1};
    map_.replicas.assign(kShape.layer_count, std::vector<std::vector<int>>(kShape.expert_count));
    for (int rank = 0; rank < 4; ++rank) AddRank(rank, rank == 0, rank > 0);
    for (int layer = 0; layer < kShape.layer_count; ++layer) {
      for (int e = 0; e < kShape.expert_count; ++e) Hold(layer, e, 1 + e % 3);
    }
    Publish();
    Turn(3);
  }

  void AddRank(int rank, bool attention, bool experts) {
    map_.ranks.push_back(
        {{.rank = rank, .generation = 50 + static_cast<uint64_t>(rank)}, attention, experts});
    Rank& made = ranks_[rank];
    made.transport = std::make_unique<cluster::LoopbackTransport>(network_, rank, 50 + rank);
    made.network = std::make_unique<cluster::PeerNetwork>(*made.transport);
    made.exchange = std::make_unique<MessageExchange>(
        kShape, kLimits, loop_, *made.network, made.experts,
        ExchangeHandlers{
            .on_link_up =
                [this, rank](const auto& peer) { up_.insert(absl::StrCat(rank, "-", peer.rank)); },
            .on_link_down =
                [this, rank](const auto& peer, const absl::Status&) {
                  down_.push_back(absl::StrCat(rank, "-", peer.rank));
                  up_.erase(down_.back());
                }});
    made.exchange->Join(rank);
  }
  void Hold(int layer, int expert, int rank) {
    map_.replicas[layer][expert].push_back(rank);
    ranks_.at(rank).experts.Hold(layer, expert);
  }
  void Publish() {
    for (auto& [rank, each] : ranks_) each.exchange->SetMap(map_);
    ++map_.version.number;
  }
  MessageExchange& owner() { return *ranks_.at(0).exchange; }
  void Turn(int turns = 1) {
    for (; turns > 0; --turns) {
      for (auto& [rank, each] : ranks_) each.exchange->Serve();
      loop_.Advance(absl::Milliseconds(1));
    }
  }
  void FinishAndCheck(model::ExpertExchange::Ticket ticket, ToyRows& rows) {
    ASSERT_TRUE(owner().Ready(ticket));
    EXPECT_TRUE(owner().Finish(ticket, rows.dispatch().out).ok());
    EXPECT_TRUE(rows.Answered());
  }

  SimLoop loop_;
  cluster::LoopbackNetwork network_;
  cluster::ExpertMap map_;
  std::map<int, Rank> ranks_;
  std::vector<std::string> down_;
  std::set<std::string> up_;
};

TEST_F(MessageExchangeTest, RowsGoOutAndComeBack) {
  ToyRows rows(kShape, 1, 5, 1);
  const auto ticket = owner().Begin(rows.dispatch());
  EXPECT_FALSE(owner().Ready(ticket));
  Turn(2);
  FinishAndCheck(ticket, rows);
  EXPECT_EQ(owner().gauges().outstanding_dispatches, 0);
  EXPECT_EQ(owner().gauges().credits, 6);
}

TEST_F(MessageExchangeTest, TwoTicketsAreOpenAtOnce) {
  ToyRows first(kShape, 1, 40, 1), second(kShape, 2, 3, 2);
  const auto a = owner().Begin(first.dispatch());
  const auto b = owner().Begin(second.dispatch());
  EXPECT_NE(a, b);
  Turn(30);
  FinishAndCheck(b, second);
  FinishAndCheck(a, first);
}

TEST_F(MessageExchangeTest, NeverSendsBeyondTheCredits) {
  ToyRows rows(kShape, 0, 300, 3);
  const auto ticket = owner().Begin(rows.dispatch());
  int most = 0;
  for (int turn = 0; turn < 200 && !owner().Ready(ticket); ++turn) {
    most = std::max(most, owner().gauges().outstanding_dispatches);
    EXPECT_EQ(owner().gauges().outstanding_dispatches + owner().gauges().credits, 3 * 2);
    Turn();
  }
  FinishAndCheck(ticket, rows);
  EXPECT_EQ(most, 3 * 2);
  for (const int rank : {1, 2, 3}) {
    EXPECT_EQ(ranks_.at(rank).exchange->served().refused_no_credit, 0);
  }
}

TEST_F(MessageExchangeTest, AskedForAnExpertThatIsGoneTheHostSaysSoAndANewerMapIsWaitedFor) {
  ToyRows rows(kShape, 1, 6, 4);
  ranks_.at(2).experts.Drop(1, 1);
  ranks_.at(2).experts.Drop(1, 4);
  const auto ticket = owner().Begin(rows.dispatch());
  const absl::Time began = loop_.Now();
  Turn(5);
  EXPECT_FALSE(owner().Ready(ticket));
  const auto wait = owner().waiting();
  ASSERT_TRUE(wait.has_value());
  EXPECT_EQ(wait->rank, -1);
  EXPECT_EQ(wait->layer, 1);
  EXPECT_EQ(wait->since, began);
  const int64_t sent = owner().counters().dispatches_sent;
  Turn(50);
  EXPECT_EQ(owner().counters().dispatches_sent, sent) << "the same rows were sent to a refusal";

  map_.replicas[1][1] = map_.replicas[1][4] = {};
  Hold(1, 1, 3);
  Hold(1, 4, 1);
  Publish();
  Turn(4);
  FinishAndCheck(ticket, rows);
}

TEST_F(MessageExchangeTest, AReplicaTakesOverAtOnceFromAHostThatRefuses) {
  for (int expert = 0; expert < kShape.expert_count; ++expert) {
    for (int rank = 1; rank < 4; ++rank) ranks_.at(rank).experts.Hold(1, expert);
    map_.replicas[1][expert] = {1, 2, 3};
  }
  Publish();
  Turn(2);
  for (int expert = 0; expert < kShape.expert_count; ++expert) {
    ranks_.at(1).experts.Drop(1, expert);
    ranks_.at(2).experts.Drop(1, expert);
  }
  ToyRows rows(kShape, 1, 200, 5);
  const auto ticket = owner().Begin(rows.dispatch());
  Turn(100);
  FinishAndCheck(ticket, rows);
  EXPECT_GT(owner().counters().nacks_received, 0);
}

TEST_F(MessageExchangeTest, ALongBatchUsesAllReplicas) {
  for (int expert = 0; expert < kShape.expert_count; ++expert) {
    for (int rank = 1; rank < 4; ++rank) ranks_.at(rank).experts.Hold(1, expert);
    map_.replicas[1][expert] = {1, 2, 3};
  }
  Publish();
  Turn(2);
  ToyRows rows(kShape, 1, 300, 6);
  const auto ticket = owner().Begin(rows.dispatch());
  Turn(100);
  FinishAndCheck(ticket, rows);
  for (const int rank : {1, 2, 3}) EXPECT_GT(ranks_.at(rank).exchange->served().rows_served, 100);
}

TEST_F(MessageExchangeTest, ABrokenConnectionIsToldAndItsRowsAreSentAgain) {
  ToyRows rows(kShape, 2, 50, 7);
  const auto ticket = owner().Begin(rows.dispatch());
  ranks_.at(1).exchange->Serve();
  network_.Break(0, 1);
  network_.Break(0, 2);
  Turn(60);
  FinishAndCheck(ticket, rows);
  EXPECT_THAT(down_, testing::UnorderedElementsAre("0-1", "0-2", "1-0", "2-0"));
  EXPECT_THAT(up_, ElementsAre("0-1", "0-2", "0-3", "1-0", "2-0", "3-0"));
  EXPECT_GE(owner().counters().dispatches_lost, 4);
  EXPECT_EQ(owner().counters().stale_frames, 0);
}

TEST_F(MessageExchangeTest, TellsWhomItWaitsForAndSinceWhen) {
  EXPECT_FALSE(owner().waiting().has_value());
  ToyRows rows(kShape, 2, 1, 8);
  rows.SetExperts({1, 2});
  const absl::Time began = loop_.Now();
  const auto ticket = owner().Begin(rows.dispatch());
  loop_.Advance(absl::Milliseconds(5));
  for (const int rank : {0, 3}) ranks_.at(rank).exchange->Serve();
  owner().Serve();
  ASSERT_TRUE(owner().waiting().has_value());
  EXPECT_EQ(owner().waiting()->rank, 2);
  EXPECT_EQ(owner().waiting()->since, began);
  Turn(2);
  EXPECT_FALSE(owner().waiting().has_value());
  FinishAndCheck(ticket, rows);
}

TEST_F(MessageExchangeTest, ALostHostIsWaitedForUntilAMapReplacesIt) {
  ToyRows rows(kShape, 1, 4, 9);
  const auto ticket = owner().Begin(rows.dispatch());
  ranks_.erase(3);
  Turn(10);
  EXPECT_FALSE(owner().Ready(ticket));
  EXPECT_EQ(owner().waiting()->rank, 3);
  std::erase_if(map_.ranks, [](const auto& entry) { return entry.rank == 3; });
  for (auto& of_layer : map_.replicas) of_layer[2] = of_layer[5] = {};
  Publish();
  Turn(3);
  EXPECT_EQ(owner().waiting()->rank, -1);
  for (int layer = 0; layer < kShape.layer_count; ++layer) {
    Hold(layer, 2, 1);
    Hold(layer, 5, 2);
  }
  Publish();
  Turn(4);
  FinishAndCheck(ticket, rows);
}

TEST_F(MessageExchangeTest, OwnExpertsAreComputedHereAndMoveOnWhenDropped) {
  AddRank(4, true, true);
  for (int expert = 0; expert < kShape.expert_count; ++expert) Hold(1, expert, 4);
  Publish();
  Turn(2);
  Rank& both = ranks_.at(4);
  ToyRows rows(kShape, 1, 7, 10);
  auto ticket = both.exchange->Begin(rows.dispatch());
  EXPECT_FALSE(both.exchange->waiting().has_value());
  EXPECT_TRUE(both.exchange->Serve());
  EXPECT_TRUE(both.exchange->Ready(ticket));
  EXPECT_TRUE(both.exchange->Finish(ticket, rows.dispatch().out).ok());
  EXPECT_TRUE(rows.Answered());
  EXPECT_EQ(both.exchange->counters().dispatches_sent, 0);

  ToyRows others(kShape, 1, 7, 11);
  ticket = both.exchange->Begin(others.dispatch());
  for (int expert = 0; expert < kShape.expert_count; ++expert) both.experts.Drop(1, expert);
  Turn(4);
  EXPECT_TRUE(both.exchange->Ready(ticket));
  EXPECT_TRUE(both.exchange->Finish(ticket, others.dispatch().out).ok());
  EXPECT_TRUE(others.Answered());
}

TEST_F(MessageExchangeTest, OlderMapsAreIgnored) {
  cluster::ExpertMap older = map_;
  older.version = {1, 0};
  older.ranks.clear();
  owner().SetMap(older);
  EXPECT_EQ(owner().map().ranks.size(), 4);
  older.version = {2, 0};
  older.ranks = map_.ranks;
  owner().SetMap(older);
  EXPECT_EQ(owner().map().version, (cluster::MapVersion{2, 0}));
}

TEST_F(MessageExchangeTest, ANewLifeEndsWhatWasUnderWay) {
  ToyRows rows(kShape, 1, 30, 12);
  const auto ticket = owner().Begin(rows.dispatch());
  Turn();
  owner().Join(9);
  ASSERT_TRUE(owner().Ready(ticket));
  EXPECT_EQ(owner().Finish(ticket, rows.dispatch().out).code(), absl::StatusCode::kAborted);
  EXPECT_THAT(owner().map().ranks, IsEmpty());
  Turn(3);
  EXPECT_EQ(owner().gauges().outstanding_dispatches, 0);
}

}  // namespace
}  // namespace epic::worker
