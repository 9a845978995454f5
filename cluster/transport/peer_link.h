// PeerLink: an established connection with one peer, over some wire; what PeerTransport holds for
// each peer that is up. Frames go out through Send and come in from OnEvents or Poll. Once it is
// broken it does nothing more. One thread.
#pragma once

#include <utility>

#include "cluster/transport/frame_codec.h"

namespace epic::cluster {

enum class Wire : uint8_t { kTcp = 1, kShm = 2 };

constexpr const char* NameOf(Wire wire) { return wire == Wire::kTcp ? "tcp" : "shm"; }

class PeerLink {
 public:
  virtual ~PeerLink() = default;
  virtual Wire wire() const = 0;

  // See Transport::Send.
  virtual void Send(const FrameHeader& header, std::span<const Bytes> parts) = 0;
  // The bytes that Send was given and for which the wire had no room so far.
  virtual size_t unsent_bytes() const = 0;
  // Must be called when the link's socket is ready (`events` are epoll's).
  virtual void OnEvents(uint32_t events, FrameReader::OnFrame on_frame) = 0;
  // Hands over what came without an event.
  virtual void Poll(FrameReader::OnFrame on_frame) {}

  // These two stand around a sleep of this thread. From Arm on, news makes the socket ready; Arm
  // returns true if there is news already. Disarm returns true if there is news of which a sleep
  // that timed out was not told.
  virtual bool Arm() { return false; }
  virtual bool Disarm(bool timed_out) { return false; }
  // Whether there is news, as far as a look at memory tells.
  virtual bool HasNews() { return false; }

  // Unavailable or DataLoss once the connection is over, else OK. The first reason stays.
  const absl::Status& broken() const { return broken_; }
  void Break(absl::Status why) {
    if (broken_.ok()) broken_ = std::move(why);
  }

 private:
  absl::Status broken_;
};

}  // namespace epic::cluster
