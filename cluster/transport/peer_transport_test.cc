#include "cluster/transport/peer_transport.h"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <filesystem>

#include "absl/strings/match.h"
#include "cluster/transport/socket.h"
#include "cluster/transport/testing/node.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::cluster {
namespace {

using ::testing::HasSubstr;

// Each test of a pair runs over both wires.
class Pair : public ::testing::TestWithParam<WireChoice> {
 protected:
  NodeOptions Options() { return {.wires = GetParam(), .run_dir = folder_.path()}; }

  void Connect(Node& a, Node& b) {
    a.SetPeers({a.entry(), b.entry()});
    b.SetPeers({a.entry(), b.entry()});
    ASSERT_TRUE(RunUntil({&a, &b}, [&] {
      return a.transport().up(b.rank()) && b.transport().up(a.rank());
    })) << a.transport().link(b.rank());
  }

  TestFolder folder_;
};

INSTANTIATE_TEST_SUITE_P(Wires, Pair, ::testing::Values(WireChoice::kTcp, WireChoice::kShm),
                         [](const auto& info) {
                           return info.param == WireChoice::kTcp ? "tcp" : "shm";
                         });

TEST_P(Pair, ConnectsAndCarriesFramesBothWays) {
  Node a(1, Options()), b(2, Options());
  EXPECT_FALSE(a.transport().up(2));
  EXPECT_FALSE(a.SendPattern(2, 1, 10));
  Connect(a, b);
  EXPECT_EQ(a.ups[2], 1);
  EXPECT_EQ(b.ups[1], 1);
  EXPECT_EQ(a.transport().wire(2), GetParam() == WireChoice::kTcp ? Wire::kTcp : Wire::kShm);

  FrameHeader header;
  header.kind = FrameKind::kCombine;
  header.layer = 7;
  header.attempt = 3;
  header.term = 1;
  header.map_number = 2;
  header.dispatch = 99;
  header.flags = kFrameDecode;
  header.detail = 5;
  const std::vector<std::byte> payload = Pattern(1, 1000);
  const Bytes part(payload);
  ASSERT_TRUE(a.transport().Send(2, header, std::span(&part, 1)));
  EXPECT_TRUE(b.frames[1].empty());  // never from Send
  ASSERT_TRUE(b.SendPattern(1, 4, 0));
  ASSERT_TRUE(RunUntil({&a, &b}, [&] { return !b.frames[1].empty() && !a.frames[2].empty(); }));
  const FrameHeader& got = b.frames[1][0].header;
  EXPECT_EQ(got.kind, FrameKind::kCombine);
  EXPECT_EQ(got.layer, 7);
  EXPECT_EQ(got.source, 1);
  EXPECT_EQ(got.generation, a.generation());
  EXPECT_EQ(got.attempt, 3u);
  EXPECT_EQ(got.term, 1u);
  EXPECT_EQ(got.map_number, 2u);
  EXPECT_EQ(got.dispatch, 99u);
  EXPECT_EQ(got.flags, kFrameDecode);
  EXPECT_EQ(got.detail, 5);
  EXPECT_EQ(b.frames[1][0].payload, payload);
  EXPECT_EQ(a.frames[2][0].payload.size(), 0u);
}

// Order and integrity, whatever the sizes: random ones up to 8 MiB, in bursts both ways, with
// rings of 64 KiB and sockets that fill up.
TEST_P(Pair, KeepsOrderAndContentOfFramesOfAllSizes) {
  Node a(1, Options()), b(2, Options());
  Connect(a, b);
  SeededRandom random(17);
  struct Expected {
    uint64_t number;
    size_t bytes;
  };
  std::map<Node*, std::deque<Expected>> expected;  // by receiver
  int64_t checked = 0;
  for (Node* node : {&a, &b}) {
    node->on_frame = [&, node](int, const FrameHeader& header, Bytes payload) {
      ASSERT_FALSE(expected[node].empty());
      const Expected want = expected[node].front();
      expected[node].pop_front();
      EXPECT_EQ(reinterpret_cast<uintptr_t>(payload.data()) % 64, 0u);
      ASSERT_EQ(header.dispatch, want.number);
      ASSERT_EQ(payload.size(), want.bytes);
      ASSERT_TRUE(std::ranges::equal(payload, Pattern(want.number, want.bytes)));
      ++checked;
    };
  }
  const size_t ring = kRingBytesMin;
  std::vector<size_t> sizes = {
      0,         1,    63,       64,     65, ring / 2 - 65, ring / 2 - 64, ring / 2 - 63,
      ring - 64, ring, ring + 1, 8 << 20};
  for (int i = 0; i < 300; ++i) sizes.push_back(random.Next() % (size_t{1} << random.Next() % 21));
  uint64_t number = 0;
  for (size_t bytes : sizes) {
    for (auto [from, to] : {std::pair{&a, &b}, std::pair{&b, &a}}) {
      expected[to].push_back({++number, bytes});
      ASSERT_TRUE(from->SendPattern(to->rank(), number, bytes));
    }
    if (random.Next() % 4 == 0) RunRounds({&a, &b}, 1);
    if (random.Next() % 4 == 0) b.transport().Poll();
  }
  ASSERT_TRUE(RunUntil({&a, &b}, [&] { return expected[&a].empty() && expected[&b].empty(); }));
  EXPECT_EQ(checked, static_cast<int64_t>(2 * sizes.size()));
  EXPECT_EQ(a.transport().doorbell_rescues() + b.transport().doorbell_rescues(), 0);
}

TEST_P(Pair, TellsWhenThePeerEndsAndWhatItSentBefore) {
  Node a(1, Options());
  auto b = std::make_unique<Node>(2, Options());
  Connect(a, *b);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(b->SendPattern(1, i, 100));
  b->Stop();
  ASSERT_TRUE(RunUntil({&a}, [&] { return a.downs[2] == 1; }));
  EXPECT_EQ(a.last_down[2].code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(a.frames[2].size(), 5u);
  EXPECT_FALSE(a.transport().up(2));
  EXPECT_THAT(std::string(a.transport().link(2).message()), HasSubstr("is down since"));
  // Another life of it is another peer of the map.
  Node next(2, Options());
  Connect(a, next);
  EXPECT_EQ(a.ups[2], 2);
  EXPECT_EQ(a.downs[2], 1);
}

TEST_P(Pair, ConnectsAgainAfterABreak) {
  Node a(1, Options()), b(2, Options());
  Connect(a, b);
  for (int round = 1; round <= 3; ++round) {
    Node& breaker = round % 2 ? a : b;
    Node& other = round % 2 ? b : a;
    breaker.transport().Disconnect(other.rank(), absl::DataLossError("nonsense in row 3"));
    EXPECT_FALSE(breaker.transport().up(other.rank()));
    EXPECT_FALSE(breaker.SendPattern(other.rank(), 1, 10));
    ASSERT_TRUE(RunUntil({&a, &b}, [&] {
      return a.downs[2] == round && b.downs[1] == round && a.transport().up(2) &&
             b.transport().up(1);
    }));
    EXPECT_EQ(breaker.last_down[other.rank()], absl::DataLossError("nonsense in row 3"));
  }
}

TEST_P(Pair, DropsWhoLeavesTheMapWithoutADown) {
  Node a(1, Options()), b(2, Options());
  Connect(a, b);
  a.SetPeers({a.entry()});
  EXPECT_FALSE(a.transport().up(2));
  ASSERT_TRUE(RunUntil({&a, &b}, [&] { return b.downs[1] == 1; }));
  EXPECT_EQ(a.downs[2], 0);
  Connect(a, b);  // and takes it back
}

// A handler may do all that the owner may.
TEST_P(Pair, HandlersMaySendDisconnectAndSetPeers) {
  Node a(1, Options()), b(2, Options());
  Connect(a, b);
  int got = 0;
  b.on_frame = [&](int peer, const FrameHeader& header, Bytes payload) {
    ++got;
    b.transport().Poll();  // does nothing
    if (header.dispatch == 1) {
      EXPECT_TRUE(b.SendPattern(1, 10, 50));
    } else if (header.dispatch == 2) {
      b.transport().Disconnect(1, absl::UnavailableError("enough"));
      EXPECT_FALSE(b.transport().up(1));
    } else {
      b.SetPeers({});
    }
  };
  for (int i = 1; i <= 3; ++i) ASSERT_TRUE(a.SendPattern(2, i, 10));
  ASSERT_TRUE(RunUntil({&a, &b}, [&] { return b.downs[1] == 1 && a.frames[2].size() == 1; }));
  EXPECT_EQ(got, 2);  // the third came on a connection that had ended
  ASSERT_TRUE(RunUntil({&a, &b}, [&] { return a.transport().up(2) && b.transport().up(1); }));
  ASSERT_TRUE(a.SendPattern(2, 3, 10));
  ASSERT_TRUE(RunUntil({&a, &b}, [&] { return got == 3 && !b.transport().up(1); }));
  EXPECT_EQ(b.downs[1], 1);
}

TEST_P(Pair, RefusesAnotherKeyAndAStaleGeneration) {
  NodeOptions other = Options();
  other.pair_key = "another";
  Node a(1, Options()), b(2, other);
  // b is told "key" for a; a is told "another" for b.
  a.SetPeers({b.entry()});
  b.SetPeers({a.entry()});
  ASSERT_TRUE(RunUntil({&a, &b}, [&] {
    return absl::StrContains(b.transport().link(1).message(), "does not hold the key");
  }));
  EXPECT_FALSE(a.transport().up(2));
  RankAddress stale = b.entry();
  stale.generation ^= 1;
  stale.pair_key = "key";
  a.SetPeers({stale});
  ASSERT_TRUE(RunUntil(
      {&a, &b}, [&] { return absl::StrContains(b.transport().link(1).message(), "revoked"); }));
  EXPECT_EQ(a.ups[2] + b.ups[1], 0);
  EXPECT_GT(a.transport().refused_count(), 0);
}

// Neither the ranks that stay nor their machine remember those that are gone.
TEST_P(Pair, ThousandsOfLivesLeaveNothingBehind) {
  Node a(1, Options());
  const auto life = [&] {
    Node b(2, Options());
    Connect(a, b);
    b.SendPattern(1, 1, 100000);
    ASSERT_TRUE(RunUntil({&a, &b}, [&] { return a.frames[2].size() == 1; }));
    a.SendPattern(2, 1, 200000);  // under way when it ends
    a.frames.clear();
  };
  for (int i = 0; i < 50; ++i) life();
  const int descriptors = DescriptorCount();
  const int64_t resident = ResidentBytes();
  for (int i = 0; i < 1000 && !HasFailure(); ++i) life();
  RunRounds({&a}, 2);
  EXPECT_LE(DescriptorCount(), descriptors);
  const auto files = std::filesystem::directory_iterator(folder_.path());
  EXPECT_LE(std::distance(begin(files), end(files)), 1);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(ResidentBytes() - resident, 4 << 20);
#endif
}

TEST(PeerTransport, PicksTheWireOfEachPair) {
  TestFolder folder;
  NodeOptions shared{.run_dir = folder.path()};
  NodeOptions far{.run_dir = folder.path(), .host_name = "there"};
  NodeOptions no_folder;
  NodeOptions only_tcp{.wires = WireChoice::kTcp, .run_dir = folder.path()};
  Node a(1, shared), b(2, shared), c(3, far), d(4, no_folder), e(5, only_tcp), f(6, shared);
  std::vector<Node*> nodes = {&a, &b, &c, &d, &e, &f};
  AddressBook entries;
  for (Node* node : nodes) entries.push_back(node->entry());
  for (Node* node : nodes) node->SetPeers(entries);
  ASSERT_TRUE(RunUntil(nodes, [&] {
    return std::ranges::all_of(nodes, [&](Node* x) {
      return std::ranges::all_of(nodes,
                                 [&](Node* y) { return x == y || x->transport().up(y->rank()); });
    });
  }));
  for (Node* x : nodes) {
    for (Node* y : nodes) {
      if (x == y) continue;
      const auto both_shared = [](int rank) { return rank == 1 || rank == 2 || rank == 6; };
      EXPECT_EQ(x->transport().wire(y->rank()),
                both_shared(x->rank()) && both_shared(y->rank()) ? Wire::kShm : Wire::kTcp)
          << x->rank() << " " << y->rank();
    }
  }
  // All to all.
  for (Node* x : nodes) {
    for (Node* y : nodes) {
      if (x == y) continue;
      EXPECT_TRUE(x->SendPattern(y->rank(), x->rank(), 300000));
    }
  }
  ASSERT_TRUE(RunUntil(nodes, [&] {
    return std::ranges::all_of(nodes, [](Node* x) { return x->frames.size() == 5; });
  }));
}

TEST(PeerTransport, SweepsSocketsOfTheDeadAndTakesItsOwnAway) {
  TestFolder folder;
  const auto count = [&] {
    auto all = std::filesystem::directory_iterator(folder.path());
    return std::distance(begin(all), end(all));
  };
  NodeOptions options{.run_dir = folder.path()};
  {
    // One that died: its file stays.
    auto dead = ListenUnix(folder.path() + "/exchange-0000000000000001.sock");
    ASSERT_TRUE(dead.ok());
  }
  EXPECT_EQ(count(), 1);
  {
    Node a(1, options);
    EXPECT_EQ(count(), 1);
    Node b(2, options);  // finds a alive
    EXPECT_EQ(count(), 2);
  }
  EXPECT_EQ(count(), 0);
}

TEST(PeerTransport, RefusesOptionsThatMakeNoSense) {
  EpollLoop loop(RealClock());
  const auto error = [&](const PeerTransportOptions& options) {
    return std::string(
        PeerTransport::Create(options, loop, RealClock(), RealRandom()).status().message());
  };
  EXPECT_THAT(error({.listen_host = "0.0.0.0"}), HasSubstr("advertised_host"));
  EXPECT_THAT(error({.listen_host = "no such host"}), HasSubstr("no such host"));
  EXPECT_THAT(error({.ring_bytes = 100000}), HasSubstr("ring_bytes is 100000"));
  EXPECT_THAT(error({.spin = absl::Milliseconds(1)}), HasSubstr("spin is 1ms"));
  EXPECT_THAT(error({.wires = WireChoice::kShm}), HasSubstr("run_dir"));
  EXPECT_THAT(error({.run_dir = std::string(200, 'x')}), HasSubstr("at most 107"));
  EXPECT_EQ(error({.listen_host = "0.0.0.0", .advertised_host = "localhost"}), "");
}

}  // namespace
}  // namespace epic::cluster
