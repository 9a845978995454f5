// One rank says whatever it likes. What it sends is refused and counted, and the exchange of the
// others goes on with the right answers.
#include <cstring>
#include <memory>
#include <vector>

#include "base/sim_loop.h"
#include "cluster/transport/loopback_transport.h"
#include "cluster/transport/peer_network.h"
#include "gtest/gtest.h"
#include "kernels/testing/random.h"
#include "worker/exchange/message_exchange.h"
#include "worker/testing/toy_rows.h"

namespace epic::worker {
namespace {

using cluster::Bytes;
using cluster::FrameHeader;
using cluster::FrameKind;
using cluster::NackReason;

constexpr ExchangeShape kShape{
    .layer_count = 3, .expert_count = 6, .experts_per_token = 2, .hidden = 4};
constexpr ExchangeLimits kLimits{.tile_rows_max = 8};
constexpr int kOwner = 0, kHost = 1, kHostile = 2;
// Flags of known weights and channels: other frames are refused before their payload is read.
constexpr int kKnown = ~(cluster::kFrameWeights | cluster::kFrameChannel);

// Rank 0 has attention, rank 1 experts 0 .. 4; rank 2 is hostile and the host of expert 5.
class HostileFramesTest : public testing::Test {
 protected:
  struct Rank {
    Rank(SimLoop& loop, cluster::LoopbackNetwork& network, int rank)
        : transport(network, rank, 10 + rank), exchange(kShape, kLimits, loop, peers, experts) {
      exchange.Join(rank);
    }
    ToyExperts experts;
    cluster::LoopbackTransport transport;
    cluster::PeerNetwork peers{transport};
    MessageExchange exchange;
  };

  HostileFramesTest() {
    map_.version = {1, 1};
    map_.ranks = {{{.rank = kOwner, .generation = 10}, /*attention=*/true, /*experts=*/false},
                  {{.rank = kHost, .generation = 11}, /*attention=*/false, /*experts=*/true},
                  {{.rank = kHostile, .generation = 12}, /*attention=*/true, /*experts=*/true}};
    map_.replicas.assign(kShape.layer_count,
                         {{kHost}, {kHost}, {kHost}, {kHost}, {kHost}, {kHostile}});
    for (int layer = 0; layer < kShape.layer_count; ++layer) {
      for (int expert = 0; expert < 5; ++expert) host_.experts.Hold(layer, expert);
    }
    hostile_.SetHandlers({.on_frame = [this](int peer, const FrameHeader& header, Bytes payload) {
      if (peer == kOwner && header.kind == FrameKind::kDispatch) asked_.push_back(header);
    }});
    owner_.exchange.SetMap(map_);
    host_.exchange.SetMap(map_);
    hostile_.SetPeers({map_.ranks[0], map_.ranks[1]});
    Turn(3);
  }

  void Turn(int turns) {
    for (; turns > 0; --turns) {
      owner_.exchange.Serve();
      host_.exchange.Serve();
      hostile_.Poll();
    }
  }
  void Send(int peer, const FrameHeader& header, const std::vector<std::byte>& payload = {}) {
    const Bytes part(payload);
    hostile_.Send(peer, header, {&part, 1});
  }
  // The exchange between the honest ranks.
  void ExpectHonestExchange(uint64_t seed) {
    ToyRows rows(kShape, 1, 20, seed);
    std::vector<int32_t> experts;
    for (int row = 0; row < 20; ++row) experts.insert(experts.end(), {row % 4, 4});
    rows.SetExperts(experts);
    const auto ticket = owner_.exchange.Begin(rows.dispatch());
    Turn(20);
    ASSERT_TRUE(owner_.exchange.Ready(ticket));
    ASSERT_TRUE(owner_.exchange.Finish(ticket, rows.dispatch().out).ok());
    EXPECT_TRUE(rows.Answered());
  }

  SimLoop loop_;
  cluster::LoopbackNetwork network_;
  cluster::ExpertMap map_;
  Rank owner_{loop_, network_, kOwner}, host_{loop_, network_, kHost};
  cluster::LoopbackTransport hostile_{network_, kHostile, 12};
  std::vector<FrameHeader> asked_;
};

std::vector<std::byte> RandomBytes(kernels::Random& random, int size) {
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.Next());
  return bytes;
}

// A dispatch that could be meant, with some fields and bytes changed.
std::vector<std::byte> Mutated(kernels::Random& random) {
  std::vector<FramePair> pairs;
  const int rows = random.Integer(1, 8);
  for (int row = 0; row < rows; ++row) {
    pairs.push_back({static_cast<uint16_t>(row), static_cast<uint16_t>(random.Integer(0, 5))});
  }
  std::vector<std::byte> payload;
  WriteDispatchHead(pairs, rows, payload);
  payload.resize(payload.size() + rows * kShape.row_bytes());
  for (int i = random.Integer(0, 2); i > 0; --i) {
    payload[random.Integer(0, static_cast<int>(payload.size()) - 1)] =
        static_cast<std::byte>(random.Next());
  }
  if (random.Integer(0, 3) == 0) payload.resize(random.Integer(0, 2000));
  return payload;
}

TEST_F(HostileFramesTest, WhateverIsSentNobodyElseIsHarmed) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    kernels::Random random(seed);
    for (int i = 0; i < 12; ++i) {
      const FrameHeader header{
          .kind = random.Integer(0, 1) == 0 ? FrameKind::kDispatch
                                            : static_cast<FrameKind>(random.Integer(0, 9)),
          .layer = static_cast<uint16_t>(random.Integer(0, 3) > 0 ? random.Integer(0, 3)
                                                                  : random.Next()),
          .attempt = static_cast<uint32_t>(random.Integer(0, 3)),
          .term = random.Next(),
          .map_number = random.Next(),
          .dispatch = static_cast<uint64_t>(random.Integer(0, 200)),
          .flags = static_cast<uint16_t>(random.Next() & (random.Integer(0, 3) > 0 ? kKnown : ~0)),
          .detail = static_cast<uint16_t>(random.Integer(0, 1) == 0 ? random.Integer(0, 6)
                                                                    : random.Next())};
      const int peer = random.Integer(kOwner, kHost);
      const auto payload =
          random.Integer(0, 3) > 0 ? Mutated(random) : RandomBytes(random, random.Integer(0, 300));
      for (int times = random.Integer(0, 3); times >= 0; --times) Send(peer, header, payload);
      if (random.Integer(0, 7) == 0) Turn(1);
    }
    ExpectHonestExchange(seed);
  }
  const ServerCounters& served = host_.exchange.served();
  EXPECT_GT(served.refused_bad_frame, 100);
  EXPECT_GT(served.refused_not_here, 10);
  EXPECT_GT(owner_.exchange.counters().stale_frames, 100);
  EXPECT_GT(owner_.exchange.counters().bad_frames, 50);
  EXPECT_GT(owner_.peers.unknown_frames(), 100);
  EXPECT_GT(served.refused_no_credit, 5);
  EXPECT_LE(owner_.exchange.gauges().credits, 4);
}

TEST_F(HostileFramesTest, UnknownKindsAndChannelsAreRefusedAndTheConnectionStays) {
  std::vector<FrameHeader> refusals;
  int downs = 0;
  hostile_.SetHandlers({.on_frame = [&](int, const FrameHeader& header,
                                        Bytes) { refusals.push_back(header); },
                        .on_down = [&](int, const absl::Status&) { ++downs; }});
  const uint16_t elsewhere = cluster::ChannelFlags(cluster::Channel{5});
  Send(kOwner, {.kind = FrameKind{200}, .attempt = 3, .dispatch = 9});
  Send(kOwner, {.kind = FrameKind::kDispatch, .attempt = 3, .dispatch = 10, .flags = elsewhere});
  // A refusal is not refused: that could go back and forth for ever.
  Send(kOwner, {.kind = FrameKind::kNack, .dispatch = 11, .flags = elsewhere});
  Turn(3);
  ASSERT_EQ(refusals.size(), 2);
  for (size_t i = 0; i < refusals.size(); ++i) {
    EXPECT_EQ(refusals[i].kind, FrameKind::kNack);
    EXPECT_EQ(refusals[i].detail, static_cast<int>(NackReason::kUnknown));
    EXPECT_EQ(refusals[i].attempt, 3);
    EXPECT_EQ(refusals[i].dispatch, 9 + i);
  }
  EXPECT_EQ(owner_.peers.unknown_frames(), 3);
  EXPECT_EQ(downs, 0);
}

// Replies to a try that is outstanding at the hostile rank.
class HostileReplyTest : public HostileFramesTest {
 protected:
  HostileReplyTest() {
    rows_.SetExperts({5, 5, 5, 5});
    Send(kOwner, {.kind = FrameKind::kCredit, .detail = 60000});
    Turn(2);
    ticket_ = owner_.exchange.Begin(rows_.dispatch());
    Turn(2);
  }
  FrameHeader Reply(FrameKind kind) {
    return {.kind = kind,
            .layer = asked_.back().layer,
            .attempt = asked_.back().attempt,
            .dispatch = asked_.back().dispatch};
  }
  // After a break the hostile rank has to grant again.
  void ExpectAskedAgain(const char* what) {
    const size_t before = asked_.size();
    Turn(3);
    Send(kOwner, {.kind = FrameKind::kCredit, .detail = 2});
    Turn(3);
    EXPECT_EQ(asked_.size(), before + 1) << what;
    EXPECT_FALSE(owner_.exchange.Ready(ticket_)) << what;
  }

  ToyRows rows_{kShape, 1, 2, 4};
  model::ExpertExchange::Ticket ticket_ = 0;
};

TEST_F(HostileReplyTest, AnswersThatDoNotFitEndTheConnectionAndTheRowsAreSentAgain) {
  ASSERT_EQ(asked_.size(), 1);
  EXPECT_EQ(owner_.exchange.gauges().outstanding_dispatches, 1);
  const size_t right = 4 * static_cast<size_t>(kShape.row_bytes());
  for (const size_t size : {size_t{0}, right - 1, right + 1, right * 2}) {
    Send(kOwner, Reply(FrameKind::kCombine), std::vector<std::byte>(size));
    ExpectAskedAgain("an answer of the wrong size");
  }
  FrameHeader other = Reply(FrameKind::kCombine);
  other.layer = 2;
  Send(kOwner, other, std::vector<std::byte>(right));
  ExpectAskedAgain("an answer of another layer");
  other = Reply(FrameKind::kCombine);
  other.flags = 1 << cluster::kFrameWeightsShift;
  Send(kOwner, other, std::vector<std::byte>(right));
  ExpectAskedAgain("an answer of other weights");
  FrameHeader refusal = Reply(FrameKind::kNack);
  for (const int reason : {0, 2, 3, 4, 5, 65535}) {
    refusal = Reply(FrameKind::kNack);
    refusal.detail = static_cast<uint16_t>(reason);
    Send(kOwner, refusal);
    ExpectAskedAgain("a refusal without sense");
  }
  Send(kOwner, Reply(FrameKind::kHello));
  ExpectAskedAgain("a frame of the transport");
  EXPECT_EQ(owner_.exchange.counters().bad_frames, 13);
  ExpectHonestExchange(1);
}

TEST_F(HostileReplyTest, StaleAndDoubledAnswersAreDropped) {
  const size_t right = 4 * static_cast<size_t>(kShape.row_bytes());
  FrameHeader stale = Reply(FrameKind::kCombine);
  for (const int change : {-1, 1}) {
    stale = Reply(FrameKind::kCombine);
    stale.attempt += change;
    Send(kOwner, stale, std::vector<std::byte>(right));
    stale = Reply(FrameKind::kCombine);
    stale.dispatch += change;
    Send(kOwner, stale, std::vector<std::byte>(right));
  }
  Turn(2);
  EXPECT_EQ(owner_.exchange.counters().stale_frames, 4);
  EXPECT_FALSE(owner_.exchange.Ready(ticket_));
  Send(kOwner, Reply(FrameKind::kCombine), std::vector<std::byte>(right, std::byte{7}));
  Send(kOwner, Reply(FrameKind::kCombine), std::vector<std::byte>(right, std::byte{9}));
  Turn(2);
  EXPECT_EQ(owner_.exchange.counters().stale_frames, 5);
  ASSERT_TRUE(owner_.exchange.Ready(ticket_));
  const auto out = rows_.dispatch().out;
  ASSERT_TRUE(owner_.exchange.Finish(ticket_, out).ok());
  EXPECT_EQ(out.As<uint8_t>()[0], 7);
  EXPECT_EQ(out.As<uint8_t>()[right - 1], 7);
}

TEST_F(HostileReplyTest, ARefusalIsNotAnsweredByTheSameRowsWhateverItNames) {
  FrameHeader refusal = Reply(FrameKind::kNack);
  refusal.detail = static_cast<uint16_t>(NackReason::kNotHere);
  Send(kOwner, refusal, std::vector<std::byte>(7, std::byte{3}));
  Turn(20);
  EXPECT_EQ(asked_.size(), 1);
  EXPECT_EQ(owner_.exchange.waiting()->rank, -1);
}

// A grant beyond what the protocol has is worth no more than the protocol has.
TEST_F(HostileReplyTest, GrantsAreBounded) {
  for (int i = 0; i < 100; ++i) Send(kOwner, {.kind = FrameKind::kCredit, .detail = 65535});
  Turn(3);
  EXPECT_EQ(owner_.exchange.gauges().credits, 2 + 1);
}

}  // namespace
}  // namespace epic::worker
