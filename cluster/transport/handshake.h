// The hello of a connection of the exchange. Dialler and listener prove to each other, by
// HMAC-SHA256 over the nonces of both, that they hold the key of their pair, and agree on ranks,
// generations and wire. All messages have one size, so that a peer that has proved nothing yet
// needs little memory. These are plain objects: they take messages and return messages.
//
//   dialer → listener   kBegin: who dials whom, the wire, a nonce
//   listener → dialer   kAnswer: its nonce and proof
//   dialer → listener   kProof: its proof; on shm with the descriptor of the rings
//   listener → dialer   kWelcome: the connection is up
//   listener → dialer   kRefusal, in place of any of its messages
#pragma once

#include <array>
#include <functional>
#include <string>

#include "cluster/transport/peer_link.h"

namespace epic::cluster {

enum class HelloStage : uint16_t {
  kBegin = 1,
  kAnswer = 2,
  kProof = 3,
  kWelcome = 4,
  kRefusal = 5
};

using Nonce = std::array<char, 32>;

// The header's source and generation are of who sends it; `detail` is the stage.
struct Hello {
  FrameHeader header;
  int32_t target_rank = 0;
  uint16_t wire = 0;
  uint16_t refusal = 0;  // NackReason
  uint64_t target_generation = 0;
  uint64_t ring_bytes = 0;  // of kBegin on shm
  Nonce nonce = {};
  std::array<char, 32> proof = {};
  std::array<char, 40> reserved = {};
};
static_assert(sizeof(Hello) == 192 && std::is_trivially_copyable_v<Hello>);

// DataLoss for what is no hello.
absl::Status CheckHello(const Hello& hello);

// Who dials whom is fixed: the higher rank dials.
constexpr bool Dials(int self, int peer) { return self > peer; }

class DialerHandshake {
 public:
  // `ring_bytes` is 0 for tcp.
  DialerHandshake(FrameOrigin self, const RankAddress& peer, Wire wire, uint64_t ring_bytes,
                  const Nonce& nonce);

  Hello Begin() const;
  // Returns the kProof to send. FailedPrecondition means that this wire cannot be had, and another
  // one may be; Unavailable, that a later dial may succeed; PermissionDenied, that the listener has
  // not proved that it holds the key.
  absl::StatusOr<Hello> OnAnswer(const Hello& answer);
  absl::Status OnWelcome(const Hello& welcome) const;

 private:
  absl::Status CheckFrom(const Hello& hello, HelloStage stage) const;

  const FrameOrigin self_, peer_;
  const std::string key_;
  const Wire wire_;
  const uint64_t ring_bytes_;
  const Nonce nonce_;
  Nonce answer_nonce_ = {};
};

class ListenerHandshake {
 public:
  // `find` gives the entry of a rank that may connect, or null.
  using Find = std::function<const RankAddress*(int rank)>;

  ListenerHandshake(FrameOrigin self, Wire wire, Find find, const Nonce& nonce);

  // `reply` is sent in any case. If it is a refusal, `status` says why and the connection ends. It
  // is Unavailable if the dialler may only be ahead of the map here, else PermissionDenied or
  // DataLoss.
  struct Step {
    Hello reply;
    absl::Status status;
  };
  Step OnBegin(const Hello& begin);
  // OK: the dialer is proved; once its rings are mapped, send Welcome.
  absl::Status OnProof(const Hello& proof) const;
  Hello Welcome() const;
  Hello Refusal(NackReason reason) const;

  // After OnBegin.
  FrameOrigin peer() const { return peer_; }
  uint64_t ring_bytes() const { return begin_.ring_bytes; }

 private:
  Step Refuse(NackReason reason, const std::string& why) const;

  const FrameOrigin self_;
  const Wire wire_;
  const Find find_;
  const Nonce nonce_;
  FrameOrigin peer_;
  std::string key_;
  Hello begin_;
};

}  // namespace epic::cluster
