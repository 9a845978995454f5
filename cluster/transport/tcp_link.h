// A tcp connection. Payloads are written from where they lie, and read into one buffer; both ends
// keep a CRC32C of them.
#pragma once

#include <sys/uio.h>

#include <vector>

#include "base/epoll_set.h"
#include "cluster/transport/peer_link.h"

namespace epic::cluster {

class TcpLink : public PeerLink {
 public:
  // `socket` is connected, non-blocking and watched by `sockets` for EPOLLIN; the link only
  // changes the events. Frames bear `self` and must bear `peer`.
  TcpLink(UniqueFd socket, EpollSet& sockets, FrameOrigin self, FrameOrigin peer);
  ~TcpLink() override;

  Wire wire() const override { return Wire::kTcp; }
  void Send(const FrameHeader& header, std::span<const Bytes> parts) override;
  size_t unsent_bytes() const override { return queue_.bytes(); }
  void OnEvents(uint32_t events, FrameReader::OnFrame on_frame) override;

 private:
  // The bytes of `parts` that the socket took.
  size_t Write(std::span<const Bytes> parts);
  void WriteQueued();
  void Read(FrameReader::OnFrame on_frame);
  // Hands over the frames of the buffer, and makes room behind the rest.
  absl::Status CutFrames(FrameReader::OnFrame on_frame);

  UniqueFd socket_;
  EpollSet& sockets_;
  const FrameOrigin self_;
  FrameReader reader_;
  AlignedBytes buffer_;
  size_t begin_ = 0, end_ = 0;  // of what was received and not used
  OutQueue queue_;
  std::vector<Bytes> frame_;      // of Send, kept for the next
  std::vector<iovec> stretches_;  // of Write
};

}  // namespace epic::cluster
