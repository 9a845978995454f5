// LoopbackTransport: ranks of one process and one thread, for tests and for embedding.
//
//   LoopbackNetwork network;
//   LoopbackTransport a(network, 0, 11), b(network, 1, 12);
//   a.SetPeers({…b…}); b.SetPeers({…a…});
//   a.Poll(); b.Poll();                       // on_up at both
//
// Frames lie in memory until their receiver polls. Two ranks are connected once each is in the
// other's peers under its generation; a broken pair is connected again at the next poll of both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "cluster/transport/transport.h"

namespace epic::cluster {

class LoopbackTransport;

// Who is there. Outlives its transports.
class LoopbackNetwork {
 public:
  // Breaks the connection of two ranks: what has not been polled is lost, both get on_down.
  void Break(int a, int b);

 private:
  friend class LoopbackTransport;
  std::map<int, LoopbackTransport*> ranks_;
};

class LoopbackTransport : public Transport {
 public:
  LoopbackTransport(LoopbackNetwork& network, int rank, uint64_t generation);
  // As the death of a process: its peers get on_down.
  ~LoopbackTransport() override;

  void SetHandlers(TransportHandlers handlers) override { handlers_ = std::move(handlers); }
  void SetPeers(const AddressBook& peers) override;
  bool up(int peer) const override;
  size_t unsent_bytes(int peer) const override { return 0; }
  bool Send(int peer, FrameHeader header, std::span<const Bytes> parts) override;
  void Disconnect(int peer, const absl::Status& why) override;
  void Poll() override;

 private:
  friend class LoopbackNetwork;
  struct Frame {
    FrameHeader header;
    std::vector<std::byte> payload;
  };
  struct Link {
    uint64_t generation = 0;  // of the peer
    bool connected = false;
    bool told_up = false;
    absl::Status down;  // not told yet, if not OK
    std::deque<Frame> arrived;
  };

  bool Wants(int peer, uint64_t generation) const;
  void Connect(int peer);
  void Cut(int peer, const absl::Status& why);
  void PollLink(int peer);

  LoopbackNetwork& network_;
  const int rank_;
  const uint64_t generation_;
  TransportHandlers handlers_;
  std::map<int, Link> links_;
};

}  // namespace epic::cluster
