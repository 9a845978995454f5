// Transport: the wires between ranks that exchange by messages. One connection per pair of ranks;
// frames on it arrive whole, once and in order, or the connection goes down and what was under way
// is lost; a new connection starts empty. It never blocks.
//
// Implementations, one file each: shm (processes of one machine), tcp, loopback (ranks of one
// process), and the simulated one of tests/sim. PeerTransport (peer_transport.h) picks per pair.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cluster/address_book.h"
#include "cluster/transport/frame.h"

namespace epic::cluster {

using Bytes = std::span<const std::byte>;

// Called on the thread that owns the transport, from Poll or from the loop, never from Send.
struct TransportHandlers {
  std::function<void(int peer)> on_up;
  // `payload` is valid within the call, and aligned to 64 bytes. The header was checked: magic,
  // version, crc, that it comes from the peer's rank and generation, and that its payload is whole.
  // On shm the payload may lie in memory that the peer can still write: copy a number, then check
  // the copy.
  std::function<void(int peer, const FrameHeader& header, Bytes payload)> on_frame;
  // The connection is gone; what was sent and not answered may or may not have arrived.
  // Unavailable: the process is gone or cannot be reached; DataLoss: it sent what is no frame.
  std::function<void(int peer, const absl::Status& why)> on_down;
};

// One thread, the rank's loop.
class Transport {
 public:
  virtual ~Transport() = default;

  virtual void SetHandlers(TransportHandlers handlers) = 0;
  // The peers to be connected with, from the newest map: new ones are connected, those gone (or of
  // another generation) are disconnected without on_down. A pair that breaks is tried again, with
  // 50–500 ms of jittered pause, for as long as the peer is here.
  virtual void SetPeers(const AddressBook& peers) = 0;

  virtual bool up(int peer) const = 0;
  // Bytes of frames to this peer that the wire had no room for so far; 0 if it is not up.
  virtual size_t unsent_bytes(int peer) const = 0;
  // Queues a frame made of the header (whose magic, version, source, generation, payload_bytes and
  // crcs are filled in) and `parts`, which are copied or written before the call returns. False,
  // and nothing happened, if the peer is not up. Bounded by the credits of the exchange, not here.
  virtual bool Send(int peer, FrameHeader header, std::span<const Bytes> parts) = 0;
  // Ends the connection, as if it had broken; on_down follows from the next Poll.
  virtual void Disconnect(int peer, const absl::Status& why) = 0;
  // Hands over what has arrived, without waiting. For a thread that computes between polls.
  virtual void Poll() = 0;
};

}  // namespace epic::cluster
