// PeerTransport: the wires of one rank. For each pair it uses shared memory if both are on one
// machine and the other's unix socket can be had, else tcp.
//
//   ASSIGN_OR_RETURN(auto transport, PeerTransport::Create(options, loop, clock, random));
//   identity.set_address(transport->address());     // host, run_dir: as in the options
//   transport->SetHandlers(…);
//   transport->SetSelf(welcome.rank(), generation);
//   transport->SetPeers(map.ranks);                 // with every newer map
//
// Everything happens on the loop's thread: while the loop runs nothing else is needed. A thread
// that computes calls Poll now and then; between its polls others take it to be awake, and do not
// ring. It is the loop's only Sleeper, and must be destroyed before the loop.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/env.h"
#include "base/epoll_loop.h"
#include "cluster/transport/peer_link.h"
#include "cluster/transport/greeting.h"
#include "cluster/transport/transport.h"

namespace epic::cluster {

enum class WireChoice { kAuto, kTcp, kShm };

inline constexpr absl::Duration kSpinMax = absl::Microseconds(20);

struct PeerTransportOptions {
  WireChoice wires = WireChoice::kAuto;

  // The tcp listener. `host` may be a name; port 0: any that is free. `advertised_host` is told to
  // the others instead of `host`; needed where `host` is a wildcard (0.0.0.0, ::).
  std::string listen_host = "127.0.0.1";
  int listen_port = 0;
  std::string advertised_host;

  // RankAddress::host of this rank. Shared memory is tried with peers that have the same.
  std::string host_name;
  // An existing folder for the unix socket, of this user; empty: no shared memory.
  std::string run_dir;
  size_t ring_bytes = 1 << 20;  // per direction and peer; see shm_ring.h for the limits

  // How long to look at rings before a sleep. At most kSpinMax, and zero unless all ranks of the
  // machine have a core each: else it costs more than it saves.
  absl::Duration spin = absl::ZeroDuration();
  // Data that the other's machine does not acknowledge for so long ends a tcp connection.
  absl::Duration tcp_user_timeout = absl::Milliseconds(500);
};

class PeerTransport : public Transport, private Sleeper {
 public:
  // Listens. InvalidArgument for options that make no sense, else as the system says.
  static absl::StatusOr<std::unique_ptr<PeerTransport>> Create(const PeerTransportOptions& options,
                                                               EpollLoop& loop, Clock& clock,
                                                               Random& random);
  ~PeerTransport() override;

  // HOST:PORT for RankAddress::address; empty if shared memory is forced.
  const std::string& address() const { return address_; }

  // This rank's number and generation. Before SetPeers; others than before end all connections,
  // without on_down. As the system says if the unix socket cannot be made; tcp goes on then.
  absl::Status SetSelf(int rank, uint64_t generation);

  void SetHandlers(TransportHandlers handlers) override { handlers_ = std::move(handlers); }
  void SetPeers(const AddressBook& peers) override;  // an entry of this rank is ignored
  bool up(int peer) const override;
  size_t unsent_bytes(int peer) const override;
  bool Send(int peer, FrameHeader header, std::span<const Bytes> parts) override;
  void Disconnect(int peer, const absl::Status& why) override;
  void Poll() override;

  // Evidence of why the pair is not up: since when, how many tries, and how the last one failed.
  // OK if it is up; NotFound: not a peer.
  absl::Status link(int peer) const;
  // The wire of a peer that is up.
  std::optional<Wire> wire(int peer) const;
  // Sleeps that the timer had to end because no doorbell rang. Should be 0.
  int64_t doorbell_rescues() const { return doorbell_rescues_; }
  // Connections that were refused, or that were no hello.
  int64_t refused_count() const { return refused_count_; }

 private:
  struct Peer {
    RankAddress entry;
    std::unique_ptr<PeerLink> link;      // null: not up
    std::unique_ptr<Greeting> greeting;  // of a dial under way
    TimerId timer = 0;                   // of the next dial, or of the deadline of this one
    int tries = 0;                       // since it was up
    absl::Time down_since;
    absl::Status last_error;
    std::string why_no_memory;  // the last time that tcp had to do instead
    std::optional<Wire> logged;
  };
  struct Inbound {
    std::unique_ptr<Greeting> greeting;
    std::string remote;  // whom to blame
    TimerId deadline = 0;
  };

  PeerTransport(const PeerTransportOptions& options, EpollLoop& loop, Clock& clock, Random& random);
  absl::Status Listen();
  absl::Status ListenForMemory();
  void StopListeningForMemory();

  absl::Duration BeforeSleep() override;
  void AfterSleep(bool timed_out) override;
  bool SpinForNews();

  // Dialing.
  std::string SocketPath(const std::string& run_dir, uint64_t generation) const;
  Wire FirstWire(const RankAddress& entry) const;
  void Dial(int rank);
  void DialOver(int rank, Wire wire);
  void DialFailed(int rank, Wire wire, const absl::Status& why);
  void DialLater(Peer& peer);
  void OnDialEvents(int rank, uint32_t events);
  void EndDial(Peer& peer);

  // Accepting.
  void Accept(int listener, Wire wire);
  void PauseAccepting(int listener, Wire wire);
  void OnInboundEvents(int fd, uint32_t events);
  void EndInbound(int fd);

  // Connections.
  void Establish(Peer& peer, Greeting& greeting);
  void Remove(Peer& peer);
  void OnLinkEvents(int rank, uint32_t events);
  bool OnFrame(Peer& peer, const FrameHeader& header, Bytes payload);
  void ReportBroken();
  void Down(Peer& peer, const absl::Status& why);

  FrameOrigin self() const { return {rank_, generation_}; }
  Nonce NewNonce();
  // One line for each culprit and kind of error.
  void WarnOnce(const std::string& culprit, const absl::Status& why);

  const PeerTransportOptions options_;
  EpollLoop& loop_;
  Clock& clock_;
  Random& random_;
  EpollSet sockets_;
  UniqueFd tcp_listener_, unix_listener_;
  std::string address_, unix_path_;
  int rank_ = -1;
  uint64_t generation_ = 0;
  TransportHandlers handlers_;
  std::map<int, Peer> peers_;
  std::map<int, Inbound> inbound_;  // by descriptor
  std::map<int, TimerId> paused_;   // listeners that wait for descriptors to be free
  std::optional<AddressBook> next_peers_;  // set while polling
  bool armed_ = false;                                // between BeforeSleep and AfterSleep
  bool polling_ = false;
  bool poll_again_ = false;  // something is to be told by the next Poll
  int64_t doorbell_rescues_ = 0;
  int64_t refused_count_ = 0;
  std::set<std::string> warned_;
};

}  // namespace epic::cluster
