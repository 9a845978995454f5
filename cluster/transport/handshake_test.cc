#include "cluster/transport/handshake.h"

#include <cstring>

#include "base/sim_loop.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::cluster {
namespace {

using ::testing::HasSubstr;

constexpr FrameOrigin kDialer{5, 500}, kListener{2, 200};
constexpr Nonce kDialerNonce = {1}, kListenerNonce = {2};

RankAddress Entry(FrameOrigin origin, const std::string& key = "pair key") {
  RankAddress entry;
  entry.rank = origin.rank;
  entry.generation = origin.generation;
  entry.pair_key = key;
  return entry;
}

class HandshakeTest : public ::testing::Test {
 protected:
  DialerHandshake Dialer(const std::string& key = "pair key", FrameOrigin self = kDialer) {
    return DialerHandshake(self, Entry(kListener, key), Wire::kTcp, 0, kDialerNonce);
  }
  ListenerHandshake Listener(FrameOrigin known = kDialer) {
    known_ = Entry(known);
    return ListenerHandshake(
        kListener, Wire::kTcp, [this](int rank) { return rank == known_.rank ? &known_ : nullptr; },
        kListenerNonce);
  }

  RankAddress known_;
};

TEST_F(HandshakeTest, ProvesBothSides) {
  DialerHandshake dialer = Dialer();
  ListenerHandshake listener = Listener();
  const auto step = listener.OnBegin(dialer.Begin());
  ASSERT_TRUE(step.status.ok()) << step.status;
  const auto proof = dialer.OnAnswer(step.reply);
  ASSERT_TRUE(proof.ok()) << proof.status();
  ASSERT_TRUE(listener.OnProof(*proof).ok());
  EXPECT_TRUE(dialer.OnWelcome(listener.Welcome()).ok());
  EXPECT_EQ(listener.peer().rank, 5);
  EXPECT_EQ(listener.peer().generation, 500u);
}

TEST_F(HandshakeTest, NoticesAnotherKeyOnEitherSide) {
  DialerHandshake dialer = Dialer("another");
  ListenerHandshake listener = Listener();
  const auto step = listener.OnBegin(dialer.Begin());
  EXPECT_TRUE(absl::IsPermissionDenied(dialer.OnAnswer(step.reply).status()));
  // A dialer that goes on without the key: its proof is of a listener's role, or of another nonce.
  Hello proof = step.reply;
  proof.header.detail = static_cast<uint16_t>(HelloStage::kProof);
  EXPECT_TRUE(absl::IsPermissionDenied(listener.OnProof(proof)));
}

// A proof is good for its connection alone.
TEST_F(HandshakeTest, RefusesAReplayedProof) {
  DialerHandshake dialer = Dialer();
  ListenerHandshake listener = Listener();
  const Hello begin = dialer.Begin();
  const auto proof = dialer.OnAnswer(listener.OnBegin(begin).reply);
  ASSERT_TRUE(proof.ok());
  ListenerHandshake next(
      kListener, Wire::kTcp, [this](int) { return &known_; }, Nonce{3});
  ASSERT_TRUE(next.OnBegin(begin).status.ok());
  EXPECT_TRUE(absl::IsPermissionDenied(next.OnProof(*proof)));
}

TEST_F(HandshakeTest, ListenerNamesWhyItRefuses) {
  const auto refusal = [&](DialerHandshake dialer, ListenerHandshake listener) {
    const auto step = listener.OnBegin(dialer.Begin());
    EXPECT_FALSE(step.status.ok());
    EXPECT_FALSE(dialer.OnAnswer(step.reply).ok());
    return std::pair(std::string(step.status.message()), dialer.OnAnswer(step.reply).status());
  };
  // Another generation than the map's: revoked.
  auto [stale, told] = refusal(Dialer("pair key", {5, 499}), Listener());
  EXPECT_THAT(stale, HasSubstr("the map has generation 1f4"));
  EXPECT_THAT(std::string(told.message()), HasSubstr("revoked"));
  // Not of the map: it may only be newer there.
  EXPECT_THAT(refusal(Dialer("pair key", {6, 500}), Listener()).first,
              HasSubstr("not of the newest map"));
  // The wrong direction, and itself.
  EXPECT_THAT(refusal(Dialer("pair key", {1, 500}), Listener({1, 500})).first,
              HasSubstr("rank 2 dials it"));
  EXPECT_THAT(refusal(Dialer("pair key", kListener), Listener(kListener)).first,
              HasSubstr("rank 2 dials it"));
  // Somebody else is wanted.
  DialerHandshake other(kDialer, Entry({2, 201}), Wire::kTcp, 0, kDialerNonce);
  EXPECT_THAT(refusal(other, Listener()).first, HasSubstr("it wants rank 2 generation c9"));
  // The other wire: may be had elsewhere.
  DialerHandshake shm(kDialer, Entry(kListener), Wire::kShm, 1 << 20, kDialerNonce);
  EXPECT_TRUE(absl::IsFailedPrecondition(refusal(shm, Listener()).second));
}

// Every bit of every message counts: none that was changed leads to a connection.
TEST_F(HandshakeTest, NoticesEveryChangedBit) {
  for (size_t bit = 0; bit < 8 * sizeof(Hello); ++bit) {
    for (int message = 0; message < 4; ++message) {
      const auto change = [&, at = 0](Hello hello) mutable {
        if (at++ == message) reinterpret_cast<uint8_t*>(&hello)[bit / 8] ^= 1 << bit % 8;
        return hello;
      };
      auto wire = change;
      DialerHandshake dialer = Dialer();
      ListenerHandshake listener = Listener();
      const auto connected = [&] {
        const Hello begin = wire(dialer.Begin());
        if (!CheckHello(begin).ok()) return false;
        const auto step = listener.OnBegin(begin);
        const auto proof = dialer.OnAnswer(wire(step.reply));
        if (!step.status.ok() || !proof.ok()) return false;
        const Hello sent = wire(*proof);
        if (!CheckHello(sent).ok() || !listener.OnProof(sent).ok()) return false;
        return dialer.OnWelcome(wire(listener.Welcome())).ok();
      };
      ASSERT_FALSE(connected()) << "bit " << bit << " of message " << message;
    }
  }
}

TEST_F(HandshakeTest, RandomBytesAreNoHello) {
  SeededRandom random(1);
  for (int i = 0; i < 2000; ++i) {
    Hello hello;
    uint64_t words[sizeof(Hello) / 8];
    for (uint64_t& word : words) word = random.Next();
    std::memcpy(&hello, words, sizeof(hello));
    EXPECT_TRUE(absl::IsDataLoss(CheckHello(hello)));
  }
}

}  // namespace
}  // namespace epic::cluster
