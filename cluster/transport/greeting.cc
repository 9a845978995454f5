#include "cluster/transport/greeting.h"

#include <sys/epoll.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "cluster/transport/socket.h"

namespace epic::cluster {

Greeting::Greeting(UniqueFd socket, Wire wire, DialerHandshake handshake, size_t ring_bytes,
                   absl::Duration user_timeout)
    : socket_(std::move(socket)),
      wire_(wire),
      side_(std::move(handshake)),
      ring_bytes_(ring_bytes),
      user_timeout_(user_timeout) {}

Greeting::Greeting(UniqueFd socket, Wire wire, ListenerHandshake handshake,
                   absl::Duration user_timeout)
    : socket_(std::move(socket)),
      wire_(wire),
      side_(std::move(handshake)),
      ring_bytes_(0),
      user_timeout_(user_timeout) {}

// A socket that connects becomes writable when it is connected or has failed (Begin asks which).
uint32_t Greeting::events() const { return dials() && !begun_ ? EPOLLOUT : EPOLLIN; }

absl::StatusOr<bool> Greeting::OnEvents(uint32_t events) {
  CHECK_LT(incoming_bytes_, sizeof(incoming_));
  if (!begun_) RETURN_IF_ERROR(Begin());
  const std::span<std::byte> message = std::as_writable_bytes(std::span(&incoming_, 1));
  while (true) {
    // Never more than the message: what follows the last one is not the greeting's.
    ASSIGN_OR_RETURN(const size_t count,
                     ReceiveSome(socket_.get(), message.subspan(incoming_bytes_), &descriptors_));
    if (count == 0) return false;
    incoming_bytes_ += count;
    // Judged as soon as it can be, so that what is no hello is not waited for.
    if (incoming_bytes_ >= sizeof(FrameHeader)) RETURN_IF_ERROR(CheckHeader(incoming_.header));
    if (incoming_bytes_ < message.size()) continue;
    incoming_bytes_ = 0;
    ASSIGN_OR_RETURN(const bool up, OnHello(incoming_));
    if (up) return true;
  }
}

absl::Status Greeting::Begin() {
  if (dials()) RETURN_IF_ERROR(ConnectError(socket_.get()));
  if (wire_ == Wire::kTcp) {
    RETURN_IF_ERROR(SetTcpOptions(socket_.get(), user_timeout_));
  } else if (const absl::Status user = CheckPeerUser(socket_.get()); !user.ok()) {
    // For the one that dials it means: take TCP. The one that listens hangs up.
    return dials() ? absl::FailedPreconditionError(user.message()) : user;
  }
  begun_ = true;
  if (auto* side = std::get_if<DialerHandshake>(&side_)) return Send(side->Begin());
  return absl::OkStatus();
}

absl::StatusOr<bool> Greeting::OnHello(const Hello& hello) {
  RETURN_IF_ERROR(CheckHello(hello));
  if (auto* side = std::get_if<DialerHandshake>(&side_)) return OnHelloDialing(*side, hello);
  return OnHelloListening(std::get<ListenerHandshake>(side_), hello);
}

absl::StatusOr<bool> Greeting::OnHelloDialing(DialerHandshake& side, const Hello& hello) {
  // The listener proves itself first: a dialer never gives its proof, or memory, to a stranger.
  if (std::exchange(first_done_, true)) {
    RETURN_IF_ERROR(side.OnWelcome(hello));
    return true;
  }
  ASSIGN_OR_RETURN(const Hello proof, side.OnAnswer(hello));
  if (wire_ == Wire::kTcp) {
    RETURN_IF_ERROR(Send(proof));
    return false;
  }
  absl::StatusOr<SharedRings> rings = SharedRings::Create(ring_bytes_);
  // No shared memory to be had is no fault of the peer: TCP is taken.
  if (!rings.ok()) return absl::FailedPreconditionError(rings.status().message());
  rings_.emplace(*std::move(rings));
  RETURN_IF_ERROR(Send(proof, rings_->fd()));
  return false;
}

absl::StatusOr<bool> Greeting::OnHelloListening(ListenerHandshake& side, const Hello& hello) {
  if (!std::exchange(first_done_, true)) {
    const ListenerHandshake::Step step = side.OnBegin(hello);
    // A refusal is sent too, so that the dialer can say why.
    RETURN_IF_ERROR(Send(step.reply));
    RETURN_IF_ERROR(step.status);
    return false;
  }
  // Memory of a peer is mapped only after its proof.
  absl::Status proved = side.OnProof(hello);
  if (proved.ok() && wire_ == Wire::kShm) proved = MapReceivedRings(side.ring_bytes());
  if (!proved.ok()) {
    RETURN_IF_ERROR(Send(side.Refusal(NackReason::kBadFrame)));
    return proved;
  }
  RETURN_IF_ERROR(Send(side.Welcome()));
  return true;
}

absl::Status Greeting::MapReceivedRings(size_t ring_bytes) {
  // The rings are expected and nothing else. All that came is closed with this greeting.
  if (descriptors_.size() != 1) {
    return absl::DataLossError(
        absl::StrCat("hello came with ", descriptors_.size(), " descriptors, not 1"));
  }
  ASSIGN_OR_RETURN(SharedRings rings, SharedRings::Map(std::move(descriptors_[0]), ring_bytes));
  rings_.emplace(std::move(rings));
  return absl::OkStatus();
}

absl::Status Greeting::Send(const Hello& hello, int descriptor) {
  return SendAll(socket_.get(), std::as_bytes(std::span(&hello, 1)), descriptor);
}

}  // namespace epic::cluster
