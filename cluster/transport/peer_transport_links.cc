// How PeerTransport listens, dials and accepts.
//
// Of each pair the higher rank dials and the lower listens, so two connections never cross. A dial
// goes: socket → greeting → link. It has one timer at a time: the deadline of the hello while it is
// under way, else the pause before the next. What comes in is a stranger until its greeting is
// done: little memory, a deadline, and a bounded number of them.
#include <dirent.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "cluster/transport/peer_transport.h"
#include "cluster/transport/shm_link.h"
#include "cluster/transport/socket.h"
#include "cluster/transport/tcp_link.h"

namespace epic::cluster {
namespace {

// A hello that takes longer is over: a peer answers within one turn of its loop, and one that loads
// may take a second for a turn.
constexpr absl::Duration kHelloTime = absl::Seconds(2);
// Between two dials, jittered (docs/protocol.md). Short at first: most breaks are over at once.
constexpr absl::Duration kPauseMin = absl::Milliseconds(50);
constexpr absl::Duration kPauseMax = absl::Milliseconds(500);
// Connections that have proved nothing yet; beyond, the oldest goes.
constexpr size_t kInboundMax = 64;
// A flood of strangers must not hold the loop: the listener stays readable and is asked again.
constexpr int kAcceptsPerEvent = 16;
// Strangers choose what is warned of, and must not fill memory or the log.
constexpr size_t kWarnedMax = 1000;

constexpr char kSocketPrefix[] = "exchange-";
constexpr char kSocketSuffix[] = ".sock";

bool IsWildcard(const std::string& host) { return host == "0.0.0.0" || host == "::"; }

// Sockets of processes that ended without a goodbye. A live one listens before it has its name.
void SweepDeadSockets(const std::string& run_dir) {
  DIR* folder = opendir(run_dir.c_str());
  if (folder == nullptr) return;
  while (const dirent* entry = readdir(folder)) {
    const absl::string_view name = entry->d_name;
    if (!absl::StartsWith(name, kSocketPrefix) || !absl::EndsWith(name, kSocketSuffix)) continue;
    const std::string path = absl::StrCat(run_dir, "/", name);
    if (absl::IsFailedPrecondition(DialUnix(path).status())) unlink(path.c_str());
  }
  closedir(folder);
}

}  // namespace

absl::StatusOr<std::unique_ptr<PeerTransport>> PeerTransport::Create(
    const PeerTransportOptions& options, EpollLoop& loop, Clock& clock, Random& random) {
  if (options.spin < absl::ZeroDuration() || options.spin > kSpinMax) {
    return absl::InvalidArgumentError(absl::StrCat("spin is ", absl::FormatDuration(options.spin),
                                                   ", at most ", absl::FormatDuration(kSpinMax)));
  }
  if (options.wires == WireChoice::kShm && options.run_dir.empty()) {
    return absl::InvalidArgumentError("shared memory is forced, and run_dir is empty");
  }
  RETURN_IF_ERROR(SharedRings::CheckSize(options.ring_bytes));
  std::unique_ptr<PeerTransport> transport(new PeerTransport(options, loop, clock, random));
  RETURN_IF_ERROR(transport->Listen());
  return transport;
}

absl::Status PeerTransport::Listen() {
  if (options_.wires != WireChoice::kShm) {
    ASSIGN_OR_RETURN(TcpListener listener, ListenTcp(options_.listen_host, options_.listen_port));
    std::string host = listener.host;
    if (!options_.advertised_host.empty()) {
      ASSIGN_OR_RETURN(host, ResolveHost(options_.advertised_host));
    } else if (IsWildcard(host)) {
      return absl::InvalidArgumentError(
          absl::StrCat("listen_host is ", host, ": advertised_host must say how to reach it"));
    }
    address_ = HostPort(host, listener.port);
    tcp_listener_ = std::move(listener.socket);
    const int fd = tcp_listener_.get();
    sockets_.Watch(fd, EPOLLIN, [this, fd](uint32_t) { Accept(fd, Wire::kTcp); });
  }
  // A path that is too long is told at the start, and not when a rank first dials.
  if (options_.wires != WireChoice::kTcp && !options_.run_dir.empty()) {
    // Its length is that of every generation's.
    const std::string longest = absl::StrCat(SocketPath(options_.run_dir, 0), ".new");
    const absl::Status fits = DialUnix(longest).status();
    if (absl::IsInvalidArgument(fits)) return fits;
    SweepDeadSockets(options_.run_dir);
  }
  return absl::OkStatus();
}

absl::Status PeerTransport::ListenForMemory() {
  if (options_.wires == WireChoice::kTcp || options_.run_dir.empty()) return absl::OkStatus();
  const std::string path = SocketPath(options_.run_dir, generation_);
  ASSIGN_OR_RETURN(unix_listener_, ListenUnix(path));
  unix_path_ = path;
  const int fd = unix_listener_.get();
  sockets_.Watch(fd, EPOLLIN, [this, fd](uint32_t) { Accept(fd, Wire::kShm); });
  return absl::OkStatus();
}

void PeerTransport::StopListeningForMemory() {
  if (unix_path_.empty()) return;
  unlink(unix_path_.c_str());
  unix_path_.clear();
  const int fd = unix_listener_.get();
  if (const auto paused = paused_.find(fd); paused != paused_.end()) {
    loop_.Cancel(paused->second);
    paused_.erase(paused);
  } else {
    sockets_.Unwatch(fd);
  }
  unix_listener_ = UniqueFd();
}

std::string PeerTransport::SocketPath(const std::string& run_dir, uint64_t generation) const {
  return absl::StrCat(run_dir, "/", kSocketPrefix, absl::Hex(generation, absl::kZeroPad16),
                      kSocketSuffix);
}

Wire PeerTransport::FirstWire(const RankAddress& entry) const {
  if (options_.wires == WireChoice::kShm) return Wire::kShm;
  const bool near =
      entry.host == options_.host_name && !entry.run_dir.empty() && !options_.run_dir.empty();
  return near && options_.wires == WireChoice::kAuto ? Wire::kShm : Wire::kTcp;
}

void PeerTransport::Dial(int rank) { DialOver(rank, FirstWire(peers_.at(rank).entry)); }

// Afterwards the peer has a greeting and its deadline, or (DialFailed) the timer of the next dial.
void PeerTransport::DialOver(int rank, Wire wire) {
  Peer& peer = peers_.at(rank);
  CHECK(peer.greeting == nullptr && peer.timer == 0) << "rank " << rank << " is dialled already";
  const RankAddress& entry = peer.entry;
  absl::StatusOr<UniqueFd> socket = wire == Wire::kTcp
                                        ? DialTcp(entry.address)
                                        : DialUnix(SocketPath(entry.run_dir, entry.generation));
  if (!socket.ok()) return DialFailed(rank, wire, socket.status());
  const size_t ring_bytes = wire == Wire::kShm ? options_.ring_bytes : 0;
  const int fd = socket->get();
  peer.greeting = std::make_unique<Greeting>(
      *std::move(socket), wire, DialerHandshake(self(), entry, wire, ring_bytes, NewNonce()),
      ring_bytes, options_.tcp_user_timeout);
  sockets_.Watch(fd, peer.greeting->events(),
                 [this, rank](uint32_t events) { OnDialEvents(rank, events); });
  peer.timer = loop_.At(clock_.Now() + kHelloTime, [this, rank, wire] {
    peers_.at(rank).timer = 0;
    DialFailed(rank, wire, absl::UnavailableError("no answer to the hello"));
  });
}

void PeerTransport::OnDialEvents(int rank, uint32_t events) {
  Peer& peer = peers_.at(rank);
  const absl::StatusOr<bool> up = peer.greeting->OnEvents(events);
  if (!up.ok()) return DialFailed(rank, peer.greeting->wire(), up.status());
  if (*up) {
    Establish(peer, *peer.greeting);
    EndDial(peer);
  } else {
    sockets_.SetEvents(peer.greeting->fd(), peer.greeting->events());
  }
}

void PeerTransport::DialFailed(int rank, Wire wire, const absl::Status& why) {
  Peer& peer = peers_.at(rank);
  EndDial(peer);
  // FailedPrecondition: this wire will not be had, so the other is tried at once and without a
  // pause. Any other failure may pass, and is tried again over the same wire.
  const std::string what = absl::StrCat(NameOf(wire), ": ", why.message());
  if (wire == Wire::kShm && options_.wires == WireChoice::kAuto &&
      absl::IsFailedPrecondition(why) && !peer.entry.address.empty()) {
    peer.why_no_memory = what;
    return DialOver(rank, Wire::kTcp);
  }
  ++peer.tries;
  peer.last_error = absl::Status(why.code(), what);
  if (absl::IsPermissionDenied(why) || absl::IsDataLoss(why)) {
    WarnOnce(absl::StrCat("rank ", rank, " (", NameOf(wire), ")"), why);
  }
  DialLater(peer);
}

void PeerTransport::DialLater(Peer& peer) {
  const absl::Duration longest =
      std::min(kPauseMax, 2 * kPauseMin * (1 << std::min(peer.tries, 4)));
  const double fraction = static_cast<double>(random_.Next() >> 11) * 0x1p-53;
  const int rank = peer.entry.rank;
  peer.timer = loop_.At(clock_.Now() + kPauseMin + (longest - kPauseMin) * fraction, [this, rank] {
    peers_.at(rank).timer = 0;
    Dial(rank);
  });
}

void PeerTransport::EndDial(Peer& peer) {
  if (peer.timer != 0) loop_.Cancel(std::exchange(peer.timer, 0));
  if (peer.greeting != nullptr && peer.greeting->fd() >= 0) sockets_.Unwatch(peer.greeting->fd());
  peer.greeting = nullptr;
}

void PeerTransport::Accept(int listener, Wire wire) {
  for (int i = 0; i < kAcceptsPerEvent; ++i) {
    UniqueFd socket(accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!socket.valid()) {
      const bool scarce = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
      if (scarce) PauseAccepting(listener, wire);
      return;
    }
    // The oldest goes, not the newest: whoever floods the listener must not keep out a peer that
    // needs two turns of the loop to prove itself.
    if (inbound_.size() >= kInboundMax) {
      ++refused_count_;
      EndInbound(std::min_element(inbound_.begin(), inbound_.end(), [](auto& a, auto& b) {
                   return a.second.deadline < b.second.deadline;
                 })->first);
    }
    const int fd = socket.get();
    const auto find = [this](int rank) -> const RankAddress* {
      const auto found = peers_.find(rank);
      return found == peers_.end() ? nullptr : &found->second.entry;
    };
    Inbound& inbound = inbound_[fd];
    inbound.remote = RemoteName(fd);
    inbound.greeting = std::make_unique<Greeting>(std::move(socket), wire,
                                                  ListenerHandshake(self(), wire, find, NewNonce()),
                                                  options_.tcp_user_timeout);
    inbound.deadline = loop_.At(clock_.Now() + kHelloTime, [this, fd] {
      ++refused_count_;
      EndInbound(fd);
    });
    sockets_.Watch(fd, EPOLLIN, [this, fd](uint32_t events) { OnInboundEvents(fd, events); });
  }
}

// Descriptors or memory are short. The listener stays readable, so it is not watched for a while:
// else the loop would spin.
void PeerTransport::PauseAccepting(int listener, Wire wire) {
  WarnOnce(address_, absl::ErrnoToStatus(errno, "accept"));
  sockets_.Unwatch(listener);
  paused_[listener] = loop_.At(clock_.Now() + absl::Milliseconds(100), [this, listener, wire] {
    paused_.erase(listener);
    sockets_.Watch(listener, EPOLLIN, [this, listener, wire](uint32_t) { Accept(listener, wire); });
  });
}

void PeerTransport::OnInboundEvents(int fd, uint32_t events) {
  Inbound& inbound = inbound_.at(fd);
  Greeting& greeting = *inbound.greeting;
  const absl::StatusOr<bool> up = greeting.OnEvents(events);
  if (up.ok() && !*up) return;
  if (up.ok()) {
    const FrameOrigin from = greeting.accepted_peer();
    const auto found = peers_.find(from.rank);
    // The map may have changed since its first message.
    if (found != peers_.end() && found->second.entry.generation == from.generation) {
      Establish(found->second, greeting);
    }
  } else {
    ++refused_count_;
    if (!absl::IsUnavailable(up.status())) {
      WarnOnce(absl::StrCat(inbound.remote, " (", NameOf(greeting.wire()), ")"), up.status());
    }
  }
  EndInbound(fd);
}

void PeerTransport::EndInbound(int fd) {
  const auto found = inbound_.find(fd);
  loop_.Cancel(found->second.deadline);
  if (found->second.greeting->fd() >= 0) sockets_.Unwatch(fd);  // else the link's by now
  inbound_.erase(found);
}

void PeerTransport::Establish(Peer& peer, Greeting& greeting) {
  // The dialler knows that its old connection is gone before this side does.
  if (peer.link != nullptr) {
    Down(peer, absl::UnavailableError("the peer has connected anew"));
  }
  const int rank = peer.entry.rank;
  const FrameOrigin from{rank, peer.entry.generation};
  const Wire wire = greeting.wire();
  CHECK(peer.link == nullptr);
  // The greeting's watch ends when its owner sees that it has no socket any more.
  UniqueFd socket = greeting.TakeSocket();
  sockets_.Watch(socket.get(), EPOLLIN,
                 [this, rank](uint32_t events) { OnLinkEvents(rank, events); });
  if (wire == Wire::kTcp) {
    peer.link = std::make_unique<TcpLink>(std::move(socket), sockets_, self(), from);
  } else {
    peer.link = std::make_unique<ShmLink>(std::move(socket), sockets_, greeting.TakeRings(),
                                                greeting.dials(), self(), from);
  }
  peer.tries = 0;
  peer.last_error = absl::OkStatus();
  if (std::exchange(peer.logged, wire) != wire) {
    LOG_INFO("exchange: rank {} generation {:x} over {}{}", rank, peer.entry.generation,
             NameOf(wire),
             peer.why_no_memory.empty() ? "" : absl::StrCat(" (", peer.why_no_memory, ")"));
  }
  handlers_.on_up(rank);
}

Nonce PeerTransport::NewNonce() {
  Nonce nonce;
  for (size_t at = 0; at < nonce.size(); at += sizeof(uint64_t)) {
    const uint64_t bits = random_.Next();
    std::memcpy(nonce.data() + at, &bits, sizeof(bits));
  }
  return nonce;
}

void PeerTransport::WarnOnce(const std::string& culprit, const absl::Status& why) {
  const std::string key = absl::StrCat(culprit, " ", static_cast<int>(why.code()));
  if (warned_.size() < kWarnedMax && warned_.insert(key).second) {
    LOG_WARNING("exchange: {}: {}", culprit, std::string(why.message()));
  }
}

}  // namespace epic::cluster
