#include "cluster/transport/handshake.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "cluster/hmac.h"

namespace epic::cluster {
namespace {

// Sealed: the rest of the message is the payload of its header.
Hello Seal(Hello hello, FrameOrigin self, FrameOrigin peer, HelloStage stage) {
  hello.header = FrameHeader();
  hello.header.kind = FrameKind::kHello;
  hello.header.detail = static_cast<uint16_t>(stage);
  hello.target_rank = peer.rank;
  hello.target_generation = peer.generation;
  const Bytes body = std::as_bytes(std::span(&hello, 1)).subspan(sizeof(FrameHeader));
  SealHeader(self, std::span(&body, 1), /*with_payload_crc=*/true, &hello.header);
  return hello;
}

// The proof of one side: over everything that the two agree on. The role is part of it, so a proof
// cannot be sent back to the one who made it; both nonces are, so it fits this hello alone.
std::array<char, 32> Proof(const std::string& key, const char* role, FrameOrigin dialer,
                           FrameOrigin listener, uint16_t wire, uint64_t ring_bytes,
                           const Nonce& dialer_nonce, const Nonce& listener_nonce) {
  // Spaces part the numbers and nonces have one length, so no two sets of facts give one text.
  std::string message = absl::StrCat("epic exchange ", static_cast<int>(kFrameVersion), " ", role,
                                     " ", dialer.rank, " ", dialer.generation, " ", listener.rank,
                                     " ", listener.generation, " ", wire, " ", ring_bytes, " ");
  message.append(dialer_nonce.data(), dialer_nonce.size());
  message.append(listener_nonce.data(), listener_nonce.size());
  std::array<char, 32> proof;
  std::memcpy(proof.data(), HmacSha256(key, message).data(), proof.size());
  return proof;
}

// In constant time: how long a comparison takes must not tell how much of a guess was right.
bool Same(const std::array<char, 32>& a, const std::array<char, 32>& b) {
  return SameProof({a.data(), a.size()}, {b.data(), b.size()});
}

FrameOrigin OriginOf(const RankAddress& entry) { return {entry.rank, entry.generation}; }

std::string Name(int rank, uint64_t generation) {
  return absl::StrCat("rank ", rank, " generation ", absl::Hex(generation));
}

absl::Status WrongKey(FrameOrigin who) {
  return absl::PermissionDeniedError(
      absl::StrCat(Name(who.rank, who.generation), " does not hold the key of the pair"));
}

absl::Status StageError(const Hello& hello, HelloStage stage) {
  return absl::DataLossError(
      absl::StrCat("hello has stage ", hello.header.detail, ", not ", static_cast<int>(stage)));
}

// A refusal is not authenticated, so it is never believed to be final: the dial is tried again,
// over another wire where this one is refused.
absl::Status RefusalError(const Hello& hello) {
  switch (static_cast<NackReason>(hello.refusal)) {
    case NackReason::kBadFrame:
      return absl::FailedPreconditionError("the peer refuses this wire");
    case NackReason::kRevoked:
      return absl::UnavailableError("the peer knows another generation of this rank: revoked");
    default:
      return absl::UnavailableError("the peer does not know this rank yet");
  }
}

}  // namespace

absl::Status CheckHello(const Hello& hello) {
  RETURN_IF_ERROR(CheckHeader(hello.header));
  const Bytes body = std::as_bytes(std::span(&hello, 1)).subspan(sizeof(FrameHeader));
  if (hello.header.kind != FrameKind::kHello || hello.header.payload_bytes != body.size()) {
    return absl::DataLossError(absl::StrCat("frame of kind ", static_cast<int>(hello.header.kind),
                                            " and ", hello.header.payload_bytes,
                                            " bytes is no hello"));
  }
  // The header is sealed again as its sender must have done, and only the sum is compared.
  FrameHeader sealed = hello.header;
  SealHeader({hello.header.source, hello.header.generation}, std::span(&body, 1),
             /*with_payload_crc=*/true, &sealed);
  if (sealed.payload_crc != hello.header.payload_crc) {
    return absl::DataLossError("crc of a hello is wrong");
  }
  return absl::OkStatus();
}

DialerHandshake::DialerHandshake(FrameOrigin self, const RankAddress& peer, Wire wire,
                                 uint64_t ring_bytes, const Nonce& nonce)
    : self_(self),
      peer_(OriginOf(peer)),
      key_(peer.pair_key),
      wire_(wire),
      ring_bytes_(ring_bytes),
      nonce_(nonce) {}

Hello DialerHandshake::Begin() const {
  Hello hello;
  hello.wire = static_cast<uint16_t>(wire_);
  hello.ring_bytes = ring_bytes_;
  hello.nonce = nonce_;
  return Seal(hello, self_, peer_, HelloStage::kBegin);
}

absl::Status DialerHandshake::CheckFrom(const Hello& hello, HelloStage stage) const {
  RETURN_IF_ERROR(CheckHello(hello));
  if (hello.header.detail == static_cast<uint16_t>(HelloStage::kRefusal)) {
    return RefusalError(hello);
  }
  if (hello.header.detail != static_cast<uint16_t>(stage)) return StageError(hello, stage);
  // The address may be another process's by now. A newer map will tell, so the dial is tried again.
  if (hello.header.source != peer_.rank || hello.header.generation != peer_.generation) {
    return absl::UnavailableError(absl::StrCat(
        "it is ", Name(hello.header.source, hello.header.generation), " that answers"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Hello> DialerHandshake::OnAnswer(const Hello& answer) {
  RETURN_IF_ERROR(CheckFrom(answer, HelloStage::kAnswer));
  // The listener proves itself first: the dialler's proof goes only to who holds the key.
  const auto wire = static_cast<uint16_t>(wire_);
  answer_nonce_ = answer.nonce;
  if (!Same(answer.proof,
            Proof(key_, "listener", self_, peer_, wire, ring_bytes_, nonce_, answer_nonce_))) {
    return WrongKey(peer_);
  }
  Hello hello;
  hello.proof = Proof(key_, "dialer", self_, peer_, wire, ring_bytes_, nonce_, answer_nonce_);
  return Seal(hello, self_, peer_, HelloStage::kProof);
}

absl::Status DialerHandshake::OnWelcome(const Hello& welcome) const {
  // A welcome needs no proof: the listener has given its proof in the answer, and this message only
  // says that it has taken the dialler's.
  return CheckFrom(welcome, HelloStage::kWelcome);
}

ListenerHandshake::ListenerHandshake(FrameOrigin self, Wire wire, Find find, const Nonce& nonce)
    : self_(self), wire_(wire), find_(std::move(find)), nonce_(nonce) {}

Hello ListenerHandshake::Refusal(NackReason reason) const {
  Hello hello;
  hello.refusal = static_cast<uint16_t>(reason);
  return Seal(hello, self_, peer_, HelloStage::kRefusal);
}

ListenerHandshake::Step ListenerHandshake::Refuse(NackReason reason, const std::string& why) const {
  const std::string message = absl::StrCat(Name(peer_.rank, peer_.generation), ": ", why);
  return {Refusal(reason), reason == NackReason::kNotHere ? absl::UnavailableError(message)
                                                          : absl::PermissionDeniedError(message)};
}

ListenerHandshake::Step ListenerHandshake::OnBegin(const Hello& begin) {
  begin_ = begin;
  peer_ = {begin.header.source, begin.header.generation};
  if (begin.header.detail != static_cast<uint16_t>(HelloStage::kBegin)) {
    return {Refusal(NackReason::kBadFrame), StageError(begin, HelloStage::kBegin)};
  }
  if (begin.target_rank != self_.rank || begin.target_generation != self_.generation) {
    return Refuse(NackReason::kNotHere,
                  absl::StrCat("it wants ", Name(begin.target_rank, begin.target_generation)));
  }
  // Judged by the newest map here. A dialler that is not in it may only be ahead, so it is refused
  // with NOT_HERE and comes again.
  const RankAddress* entry = find_(peer_.rank);
  if (entry == nullptr) return Refuse(NackReason::kNotHere, "it is not of the newest map here");
  if (entry->generation != peer_.generation) {
    return Refuse(NackReason::kRevoked,
                  absl::StrCat("the map has generation ", absl::Hex(entry->generation)));
  }
  if (!Dials(peer_.rank, self_.rank)) {
    return Refuse(NackReason::kBadFrame, absl::StrCat("rank ", self_.rank, " dials it"));
  }
  if (begin.wire != static_cast<uint16_t>(wire_)) {
    return Refuse(NackReason::kBadFrame, absl::StrCat("hello wire is ", begin.wire));
  }
  // The key is taken now: the map may change before the proof comes, and Establish looks again.
  key_ = entry->pair_key;
  Hello hello;
  hello.nonce = nonce_;
  hello.proof =
      Proof(key_, "listener", peer_, self_, begin_.wire, begin_.ring_bytes, begin_.nonce, nonce_);
  return {Seal(hello, self_, peer_, HelloStage::kAnswer), absl::OkStatus()};
}

absl::Status ListenerHandshake::OnProof(const Hello& proof) const {
  if (proof.header.detail != static_cast<uint16_t>(HelloStage::kProof)) {
    return StageError(proof, HelloStage::kProof);
  }
  if (!Same(proof.proof, Proof(key_, "dialer", peer_, self_, begin_.wire, begin_.ring_bytes,
                               begin_.nonce, nonce_))) {
    return WrongKey(peer_);
  }
  return absl::OkStatus();
}

Hello ListenerHandshake::Welcome() const {
  return Seal(Hello(), self_, peer_, HelloStage::kWelcome);
}

}  // namespace epic::cluster
