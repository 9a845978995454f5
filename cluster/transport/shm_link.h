// A pair of rings in shared memory; a unix socket is the doorbell of a peer that sleeps, and tells
// its death.
#pragma once

#include <vector>

#include "base/epoll_set.h"
#include "cluster/transport/peer_link.h"
#include "cluster/transport/shm_ring.h"

namespace epic::cluster {

class ShmLink : public PeerLink {
 public:
  // `socket` is connected, non-blocking and watched by `sockets` for EPOLLIN. `creator`: this end
  // has made the rings.
  ShmLink(UniqueFd socket, EpollSet& sockets, SharedRings rings, bool creator, FrameOrigin self,
             FrameOrigin peer);
  ~ShmLink() override;

  Wire wire() const override { return Wire::kShm; }
  void Send(const FrameHeader& header, std::span<const Bytes> parts) override;
  size_t unsent_bytes() const override { return queue_.bytes(); }
  void OnEvents(uint32_t events, FrameReader::OnFrame on_frame) override;
  void Poll(FrameReader::OnFrame on_frame) override;
  bool Arm() override;
  bool Disarm(bool timed_out) override;
  bool HasNews() override;

 private:
  void Publish();
  void WriteQueued();
  void Ring();
  // Returns whether anything was read, and false once the link is broken.
  bool ReadOnce(FrameReader::OnFrame on_frame);
  void ReadAll(FrameReader::OnFrame on_frame);

  UniqueFd socket_;
  EpollSet& sockets_;
  SharedRings rings_;
  RingWriter writer_;
  RingReader ring_reader_;
  const FrameOrigin self_;
  FrameReader frame_reader_;
  OutQueue queue_;
  std::vector<Bytes> frame_;  // of Send, kept for the next
  bool unread_ = false;       // the last ReadAll ended early
};

}  // namespace epic::cluster
