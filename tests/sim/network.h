// The simulated wires between ranks. Order is kept within a connection; a break loses what has not
// arrived (a suffix), and each end notices it at its own time. A cut holds back one direction: what
// heals in time arrives late, what does not breaks the connection.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/sim_loop.h"
#include "cluster/transport/transport.h"
#include "tests/sim/dice.h"
#include "tests/sim/trace.h"

namespace epic::sim {

class SimTransport;

class SimNetwork {
 public:
  SimNetwork(SimLoop& loop, uint64_t seed, Trace& trace)
      : loop_(loop), dice_(seed), trace_(trace) {}

  // Frames travel for so long at most.
  void set_delay_max(absl::Duration delay) { delay_max_ = delay; }
  // Machines, named by seat: nothing passes from one to the other for so long.
  void Cut(int from_seat, int to_seat, absl::Duration lasts);
  // Every connection between the two machines breaks.
  void Break(int seat, int other_seat);

 private:
  friend class SimTransport;
  struct End {
    SimTransport* transport = nullptr;  // null: the process is gone
    bool wants = false;
    bool told_up = false;  // on_up is delivered or on its way, and no on_down since
    absl::Time last_arrival = absl::InfinitePast();
    absl::Time lost_after = absl::InfiniteFuture();  // what arrives here later is lost
  };
  // Two processes, by generation.
  struct Pair {
    End ends[2];
    uint64_t connection = 0;  // number of the newest
    bool open = false;
    bool dialling = false;
  };
  using Name = std::pair<uint64_t, uint64_t>;

  static Name NameOf(uint64_t a, uint64_t b) { return {std::min(a, b), std::max(a, b)}; }
  void Register(SimTransport* transport, uint64_t generation);
  void Unregister(uint64_t generation);
  void Want(uint64_t generation, uint64_t peer, bool wants);
  void Dial(const Name& name, absl::Duration pause);
  void Connect(const Name& name);
  void BreakPair(const Name& name, const absl::Status& why);
  void NoticeBreak(const Name& name, int side, uint64_t connection, const absl::Status& why);
  bool CutNow(int from_seat, int to_seat) const;
  // `connection`: the one that the sender knows of.
  void Carry(const Name& name, int from, uint64_t connection, cluster::FrameHeader header,
             std::vector<std::byte> payload);

  SimLoop& loop_;
  Dice dice_;
  Trace& trace_;
  absl::Duration delay_max_ = absl::Microseconds(300);
  std::map<uint64_t, SimTransport*> processes_;  // by generation
  std::map<Name, Pair> pairs_;
  std::map<std::pair<int, int>, absl::Time> cuts_;  // (from, to): until
};

// A process's end of its connections. What arrives waits for Poll.
class SimTransport : public cluster::Transport {
 public:
  // `wake`: something waits for Poll.
  SimTransport(SimNetwork& network, int seat, uint64_t generation, std::function<void()> wake);
  ~SimTransport() override;

  // Who this process is from now on. All connections of another generation are gone.
  void SetSelf(int rank, uint64_t generation);
  int seat() const { return seat_; }

  void SetHandlers(cluster::TransportHandlers handlers) override {
    handlers_ = std::move(handlers);
  }
  void SetPeers(const cluster::AddressBook& peers) override;
  bool up(int peer) const override;
  size_t unsent_bytes(int peer) const override { return 0; }
  bool Send(int peer, cluster::FrameHeader header, std::span<const cluster::Bytes> parts) override;
  void Disconnect(int peer, const absl::Status& why) override;
  void Poll() override;

 private:
  friend class SimNetwork;
  enum class Kind { kUp, kDown, kFrame };
  struct Event {
    Kind kind;
    uint64_t generation = 0;  // of the peer
    uint64_t connection = 0;
    absl::Status why;
    cluster::FrameHeader header;
    std::vector<std::byte> payload;
  };
  struct Peer {
    uint64_t generation = 0;
    bool up = false;
    uint64_t connection = 0;
  };

  void Arrive(Event event);

  SimNetwork& network_;
  const int seat_;
  uint64_t generation_;
  const std::function<void()> wake_;
  int rank_ = -1;
  cluster::TransportHandlers handlers_;
  std::map<int, Peer> peers_;
  std::unordered_map<uint64_t, int> ranks_;  // by generation
  std::vector<Event> arrived_;
};

}  // namespace epic::sim
