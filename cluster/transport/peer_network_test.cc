#include "cluster/transport/peer_network.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/transport/loopback_transport.h"
#include "cluster/transport/testing/node.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::cluster {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// A channel that is not rows: what pages, experts or weights will be.
constexpr Channel kBulk{5};

// Ranks 0, 1, 2 over loopback, each with both channels; what their users are told.
class PeerNetworkTest : public testing::Test {
 protected:
  struct Rank {
    Rank(LoopbackNetwork& loopback, int rank)
        : transport(loopback, rank, 10 + rank), network(transport) {
      Open(Channel::kRows, "rows", 2);
      Open(kBulk, "bulk", 1);
    }
    void Open(Channel channel, const std::string& name, int credits) {
      network.Open(channel,
                   {.credits = credits,
                    .on_up = [=, this](int peer) { Tell(name, " up ", peer); },
                    .on_frame =
                        [=, this](int, const FrameHeader& header, Bytes) {
                          Tell(name, " frame ", header.dispatch);
                        },
                    .on_down = [=, this](int peer,
                                         const absl::Status&) { Tell(name, " down ", peer); }});
    }
    void Tell(const std::string& name, const std::string& what, uint64_t number) {
      events.push_back(absl::StrCat(name, what, number));
    }
    bool SendOnCredit(Channel channel, int peer, uint64_t dispatch) {
      return network.SendOnCredit(channel, peer,
                                  {.kind = FrameKind::kDispatch, .dispatch = dispatch}, {});
    }
    std::vector<std::string> Events() { return std::exchange(events, {}); }

    LoopbackTransport transport;
    PeerNetwork network;
    std::vector<std::string> events;
  };

  static AddressBook Book(std::vector<int> ranks) {
    AddressBook book;
    for (const int rank : ranks) {
      book.push_back({.rank = rank, .generation = 10 + static_cast<uint64_t>(rank)});
    }
    return book;
  }
  void Connect() {
    for (const Channel channel : {Channel::kRows, kBulk}) {
      a_.network.SetPeers(channel, Book({1}));
      b_.network.SetPeers(channel, Book({0}));
    }
    Turn();
    EXPECT_THAT(a_.Events(), ElementsAre("rows up 1", "bulk up 1"));
    EXPECT_THAT(b_.Events(), ElementsAre("rows up 0", "bulk up 0"));
  }
  void Turn() {
    for (int i = 0; i < 3; ++i) {
      for (Rank* rank : {&a_, &b_, &c_}) rank->network.Poll();
    }
  }

  LoopbackNetwork loopback_;
  Rank a_{loopback_, 0}, b_{loopback_, 1}, c_{loopback_, 2};
};

TEST_F(PeerNetworkTest, AChannelNeverUsesTheCreditsOfAnother) {
  Connect();
  EXPECT_TRUE(a_.SendOnCredit(kBulk, 1, 1));
  EXPECT_FALSE(a_.SendOnCredit(kBulk, 1, 2));
  EXPECT_EQ(a_.network.credits(Channel::kRows, 1), 2);
  EXPECT_TRUE(a_.SendOnCredit(Channel::kRows, 1, 3));
  EXPECT_TRUE(a_.SendOnCredit(Channel::kRows, 1, 4));
  EXPECT_FALSE(a_.SendOnCredit(Channel::kRows, 1, 5));
  Turn();
  EXPECT_THAT(b_.Events(), ElementsAre("bulk frame 1", "rows frame 3", "rows frame 4"));
  a_.network.GiveBack(Channel::kRows, 1);
  EXPECT_EQ(a_.network.credits(Channel::kRows, 1), 1);
  EXPECT_FALSE(a_.SendOnCredit(kBulk, 1, 6));
  a_.network.GiveBack(kBulk, 1);
  EXPECT_TRUE(a_.SendOnCredit(kBulk, 1, 7));
}

TEST_F(PeerNetworkTest, GrantsBeyondWhatTheChannelHasAreWorthNothing) {
  Connect();
  EXPECT_TRUE(a_.SendOnCredit(Channel::kRows, 1, 1));
  b_.network.GrantMore(Channel::kRows, 0, 60000);
  b_.network.GrantMore(kBulk, 0, 60000);
  Turn();
  EXPECT_EQ(a_.network.credits(Channel::kRows, 1), 1);
  EXPECT_EQ(a_.network.credits(kBulk, 1), 1);
}

TEST_F(PeerNetworkTest, AConnectionLastsWhileAnyChannelWantsIt) {
  Connect();
  a_.network.SetPeers(kBulk, Book({1, 2}));
  c_.network.SetPeers(kBulk, Book({0}));
  Turn();
  EXPECT_THAT(a_.Events(), ElementsAre("bulk up 2"));
  a_.network.SetPeers(Channel::kRows, {});
  Turn();
  EXPECT_THAT(b_.Events(), IsEmpty());
  EXPECT_TRUE(a_.SendOnCredit(kBulk, 1, 1));
  // Rows want both again: the connections are up already, and the next poll says so.
  a_.network.SetPeers(Channel::kRows, Book({1, 2}));
  Turn();
  EXPECT_THAT(a_.Events(), ElementsAre("rows up 1", "rows up 2"));
  EXPECT_EQ(a_.network.credits(Channel::kRows, 2), 2);
  a_.network.SetPeers(Channel::kRows, {});
  a_.network.SetPeers(kBulk, Book({2}));
  Turn();
  EXPECT_THAT(b_.Events(), ElementsAre("bulk frame 1", "rows down 0", "bulk down 0"));
  EXPECT_THAT(a_.Events(), IsEmpty());
}

TEST_F(PeerNetworkTest, ANewConnectionStartsWithNewCredits) {
  Connect();
  EXPECT_TRUE(a_.SendOnCredit(kBulk, 1, 1));
  loopback_.Break(0, 1);
  Turn();
  EXPECT_THAT(a_.Events(),
              ElementsAre("rows down 1", "bulk down 1", "rows up 1", "bulk up 1"));
  EXPECT_EQ(a_.network.credits(Channel::kRows, 1), 2);
  EXPECT_TRUE(a_.SendOnCredit(kBulk, 1, 2));
}

// The wires between two processes, both sides of one bulk sender.
class ChannelsOverWires : public testing::TestWithParam<WireChoice> {
 protected:
  static constexpr int kBulkCredits = 2;

  ChannelsOverWires() {
    a_network_.Open(Channel::kRows, {.credits = 2});
    a_network_.Open(kBulk, {.credits = kBulkCredits,
                            .on_frame = [this](int peer, const FrameHeader&,
                                               Bytes) { a_network_.GiveBack(kBulk, peer); },
                            .on_room = [this](int peer) { return SendBulk(peer); }});
    b_network_.Open(Channel::kRows, {.credits = 2, .on_frame = [this](int, const FrameHeader&,
                                                                     Bytes) {
                                       ++rows_;
                                       bulk_before_rows_ = bulk_;
                                     }});
    b_network_.Open(kBulk, {.credits = kBulkCredits,
                            .on_frame = [this](int peer, const FrameHeader& header, Bytes payload) {
                              EXPECT_EQ(payload.size(), kBulkBytesMax);
                              ++bulk_;
                              // The frame is done with: its credit is the sender's again.
                              b_network_.Send(kBulk, peer, {.kind = FrameKind::kCombine}, {});
                            }});
    for (const Channel channel : {Channel::kRows, kBulk}) {
      a_network_.SetPeers(channel, {b_.entry()});
      b_network_.SetPeers(channel, {a_.entry()});
    }
    EXPECT_TRUE(RunUntil({&a_, &b_}, [&] {
      return a_network_.HasRoom(Channel::kRows, 2) && a_network_.HasRoom(kBulk, 2);
    }));
  }

  bool SendBulk(int peer) {
    if (bulk_left_ == 0) return false;
    const std::vector<std::byte> payload(kBulkBytesMax);
    const Bytes part(payload);
    const FrameHeader header{.kind = FrameKind::kDispatch};
    EXPECT_TRUE(a_network_.SendOnCredit(kBulk, peer, header, {&part, 1})) << "room was offered";
    --bulk_left_;
    return true;
  }

  TestFolder folder_;
  NodeOptions options_{.wires = GetParam(), .run_dir = folder_.path()};
  Node a_{1, options_}, b_{2, options_};
  PeerNetwork a_network_{a_.transport()}, b_network_{b_.transport()};
  int bulk_left_ = 0, bulk_ = 0, rows_ = 0, bulk_before_rows_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Wires, ChannelsOverWires,
                         testing::Values(WireChoice::kTcp, WireChoice::kShm),
                         [](const auto& info) {
                           return info.param == WireChoice::kTcp ? "tcp" : "shm";
                         });

TEST_P(ChannelsOverWires, RowsWaitForNoMoreBulkThanItsCredits) {
  bulk_left_ = 1000;
  a_network_.Poll();  // as much as there is room for, and b has not run
  EXPECT_GE(bulk_left_, 1000 - kBulkCredits);
  EXPECT_LT(bulk_left_, 1000);
  ASSERT_TRUE(a_network_.SendOnCredit(Channel::kRows, 2, {.kind = FrameKind::kDispatch}, {}));
  ASSERT_TRUE(RunUntil({&a_, &b_}, [&] {
    a_network_.Poll();
    return rows_ == 1;
  }));
  EXPECT_LE(bulk_before_rows_, kBulkCredits);
}

TEST_P(ChannelsOverWires, BulkWaitsWhileAnythingElseIsUnsent) {
  // Rows of 8 MB fill the wire, for b does not run.
  const std::vector<std::byte> payload(8 << 20);
  const Bytes part(payload);
  int sent = 0;
  while (a_.transport().unsent_bytes(2) == 0) {
    ASSERT_TRUE(
        a_network_.Send(Channel::kRows, 2, {.kind = FrameKind::kCombine}, {&part, 1}));
    ++sent;
  }
  bulk_left_ = 1;
  a_network_.Poll();
  EXPECT_EQ(bulk_left_, 1);
  EXPECT_EQ(a_network_.credits(kBulk, 2), kBulkCredits);
  ASSERT_TRUE(RunUntil({&a_, &b_}, [&] {
    a_network_.Poll();
    return bulk_ == 1;
  }));
  EXPECT_EQ(rows_, sent);
  EXPECT_EQ(bulk_before_rows_, 0);
}

}  // namespace
}  // namespace epic::cluster
