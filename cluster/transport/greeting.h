// Greeting: a socket on which the hello is under way. It holds a message, and no more, of a peer
// that has proved nothing yet.
#pragma once

#include <optional>
#include <variant>
#include <vector>

#include "cluster/transport/handshake.h"
#include "cluster/transport/shm_ring.h"

namespace epic::cluster {

class Greeting {
 public:
  // The dialler's side: `socket` is being connected. `ring_bytes` is 0 for tcp.
  Greeting(UniqueFd socket, Wire wire, DialerHandshake handshake, size_t ring_bytes,
           absl::Duration user_timeout);
  // The listener's side: `socket` was accepted.
  Greeting(UniqueFd socket, Wire wire, ListenerHandshake handshake, absl::Duration user_timeout);

  int fd() const { return socket_.get(); }
  Wire wire() const { return wire_; }
  bool dials() const { return std::holds_alternative<DialerHandshake>(side_); }
  // What to wait for (epoll's events).
  uint32_t events() const;

  // Goes on as far as the socket allows. Returns true when the connection is up. Errors are those
  // of the handshake (FailedPrecondition: this wire cannot be had). After an error the greeting is
  // over.
  absl::StatusOr<bool> OnEvents(uint32_t events);

  // Once it is up.
  FrameOrigin accepted_peer() const { return std::get<ListenerHandshake>(side_).peer(); }
  UniqueFd TakeSocket() { return std::move(socket_); }
  SharedRings TakeRings() { return *std::move(rings_); }

 private:
  absl::Status Begin();
  absl::StatusOr<bool> OnHello(const Hello& hello);
  absl::StatusOr<bool> OnHelloDialing(DialerHandshake& side, const Hello& hello);
  absl::StatusOr<bool> OnHelloListening(ListenerHandshake& side, const Hello& hello);
  absl::Status MapReceivedRings(size_t ring_bytes);
  absl::Status Send(const Hello& hello, int descriptor = -1);

  UniqueFd socket_;
  const Wire wire_;
  std::variant<DialerHandshake, ListenerHandshake> side_;
  const size_t ring_bytes_;  // of who dials
  const absl::Duration user_timeout_;
  bool begun_ = false;       // the socket is connected and checked
  bool first_done_ = false;  // the first message of the other end was taken
  Hello incoming_;
  size_t incoming_bytes_ = 0;
  std::vector<UniqueFd> descriptors_;
  std::optional<SharedRings> rings_;
};

}  // namespace epic::cluster
