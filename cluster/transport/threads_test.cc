// Two ranks on two threads: what memory order could break.
#include <algorithm>
#include <iostream>

#include "cluster/transport/testing/node.h"
#include "gtest/gtest.h"

namespace epic::cluster {
namespace {

struct Case {
  WireChoice wires;
  absl::Duration spin;
  bool polls;  // it computes and polls between sleeps
};

class TwoThreads : public ::testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(Wires, TwoThreads,
                         ::testing::Values(Case{WireChoice::kTcp, {}, false},
                                           Case{WireChoice::kShm, {}, false},
                                           Case{WireChoice::kShm, absl::Microseconds(20), false},
                                           Case{WireChoice::kShm, {}, true}));

// Each answers each frame with one of its own, of any size; a lost doorbell would be counted.
TEST_P(TwoThreads, PingPongLosesNoBell) {
  constexpr uint64_t kRounds = 4000;
  TestFolder folder;
  const NodeOptions options{
      .wires = GetParam().wires, .run_dir = folder.path(), .spin = GetParam().spin};
  Node a(1, options), b(2, options);
  a.SetPeers({b.entry()});
  b.SetPeers({a.entry()});
  ASSERT_TRUE(RunUntil({&a, &b}, [&] { return a.transport().up(2) && b.transport().up(1); }));
  const auto size_of = [](uint64_t number) {
    const uint64_t bits = SeededRandom(number).Next();
    return bits % (bits >> 32 & 63 ? 3000 : 200000);
  };
  const auto play = [&](Node& node) {
    node.on_frame = [&](int peer, const FrameHeader& header, Bytes payload) {
      ASSERT_TRUE(std::ranges::equal(payload, Pattern(header.dispatch, size_of(header.dispatch))));
      const uint64_t next = header.dispatch + 1;
      if (next <= kRounds) {
        ASSERT_TRUE(node.SendPattern(peer, next, size_of(next)));
      }
      if (next >= kRounds) node.loop().Stop();
    };
  };
  play(a);
  play(b);
  const auto run = [&](Node& node) {
    if (!GetParam().polls) return node.loop().Run();
    bool stopped = false;
    auto inner = node.on_frame;
    node.on_frame = [&, inner](int peer, const FrameHeader& header, Bytes payload) {
      inner(peer, header, payload);
      stopped |= header.dispatch + 1 >= kRounds;
    };
    while (!stopped) {
      for (int i = 0; i < 20 && !stopped; ++i) node.transport().Poll();
      if (!stopped) node.loop().RunOnce(absl::InfiniteDuration());
    }
  };
  ASSERT_TRUE(a.SendPattern(2, 1, size_of(1)));
  {
    const auto thread_a = RealThreads().Start("rank 1", [&] { run(a); });
    const auto thread_b = RealThreads().Start("rank 2", [&] { run(b); });
  }
  EXPECT_EQ(a.downs[2] + b.downs[1], 0);
  // Not judged: a thread may lose its core for long between publishing and ringing.
  std::cout << a.transport().doorbell_rescues() + b.transport().doorbell_rescues()
            << " rescued by the timer" << std::endl;
}

// One floods the other, which is slow: the ring is full again and again, and room rings too.
TEST_P(TwoThreads, AFullRingWakesItsWriter) {
  constexpr uint64_t kFrames = 300;
  TestFolder folder;
  const NodeOptions options{
      .wires = GetParam().wires, .run_dir = folder.path(), .spin = GetParam().spin};
  Node a(1, options), b(2, options);
  a.SetPeers({b.entry()});
  b.SetPeers({a.entry()});
  ASSERT_TRUE(RunUntil({&a, &b}, [&] { return a.transport().up(2) && b.transport().up(1); }));
  uint64_t got = 0;
  b.on_frame = [&](int, const FrameHeader& header, Bytes payload) {
    ASSERT_TRUE(std::ranges::equal(payload, Pattern(++got, 30000)));
    if (got < kFrames) return;
    ASSERT_TRUE(b.SendPattern(1, 0, 0));
    b.loop().Stop();
  };
  a.on_frame = [&](int, const FrameHeader&, Bytes) { a.loop().Stop(); };
  for (uint64_t i = 1; i <= kFrames; ++i) ASSERT_TRUE(a.SendPattern(2, i, 30000));
  {
    const auto thread_a = RealThreads().Start("rank 1", [&] { a.loop().Run(); });
    const auto thread_b = RealThreads().Start("rank 2", [&] { b.loop().Run(); });
  }
  EXPECT_EQ(got, kFrames);
  // Not judged: a thread may lose its core for long between publishing and ringing.
  std::cout << a.transport().doorbell_rescues() + b.transport().doorbell_rescues()
            << " rescued by the timer" << std::endl;
}

}  // namespace
}  // namespace epic::cluster
