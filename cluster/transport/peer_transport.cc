#include "cluster/transport/peer_transport.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace epic::cluster {
namespace {

// The longest sleep while a doorbell could be missed: long enough to cost nothing, short enough not
// to look like a hung rank (protocol: a rank ticks at least every 50 ms of work).
constexpr absl::Duration kSleepMax = absl::Milliseconds(50);

}  // namespace

PeerTransport::PeerTransport(const PeerTransportOptions& options, EpollLoop& loop, Clock& clock,
                             Random& random)
    : options_(options), loop_(loop), clock_(clock), random_(random) {
  // The descriptor only wakes the loop; AfterSleep polls.
  loop_.Watch(sockets_.fd(), [] {});
  loop_.SetSleeper(this);
}

PeerTransport::~PeerTransport() {
  SetPeers({});
  while (!inbound_.empty()) EndInbound(inbound_.begin()->first);
  StopListeningForMemory();
  for (const auto& [listener, timer] : paused_) loop_.Cancel(timer);
  loop_.SetSleeper(nullptr);
  loop_.Unwatch(sockets_.fd());
}

absl::Status PeerTransport::SetSelf(int rank, uint64_t generation) {
  // It ends every link, and a handler is called from within one.
  CHECK(!polling_) << "not from a handler";
  if (rank == rank_ && generation == generation_) return absl::OkStatus();
  SetPeers({});
  while (!inbound_.empty()) EndInbound(inbound_.begin()->first);
  StopListeningForMemory();
  rank_ = rank;
  generation_ = generation;
  return ListenForMemory();
}

void PeerTransport::SetPeers(const AddressBook& peers) {
  // Poll goes through peers_ and their links, so from a handler the change waits for its end.
  if (polling_) {
    next_peers_ = peers;
    return;
  }
  std::map<int, const RankAddress*> entries;
  for (const RankAddress& entry : peers) {
    if (entry.rank != rank_) entries[entry.rank] = &entry;
  }
  for (auto it = peers_.begin(); it != peers_.end();) {
    const auto found = entries.find(it->first);
    // A peer stays connected while its generation is the same. A new address counts for the next
    // dial.
    const bool stays =
        found != entries.end() && found->second->generation == it->second.entry.generation;
    if (!stays) Remove(it->second);
    it = stays ? std::next(it) : peers_.erase(it);
  }
  CHECK(entries.empty() || rank_ >= 0) << "SetPeers before SetSelf";
  for (const auto& [rank, entry] : entries) {
    const auto [it, fresh] = peers_.try_emplace(rank);
    it->second.entry = *entry;
    if (!fresh) continue;
    it->second.down_since = clock_.Now();
    if (Dials(rank_, rank)) Dial(rank);
  }
}

void PeerTransport::Remove(Peer& peer) {
  EndDial(peer);
  peer.link = nullptr;
}

bool PeerTransport::up(int peer) const {
  const auto found = peers_.find(peer);
  return found != peers_.end() && found->second.link != nullptr &&
         found->second.link->broken().ok();
}

size_t PeerTransport::unsent_bytes(int peer) const {
  return up(peer) ? peers_.at(peer).link->unsent_bytes() : 0;
}

bool PeerTransport::Send(int peer, FrameHeader header, std::span<const Bytes> parts) {
  if (!up(peer)) return false;
  PeerLink& link = *peers_.at(peer).link;
  link.Send(header, parts);
  // Told by the next Poll and never from Send: callers are in the middle of their own changes.
  if (!link.broken().ok()) poll_again_ = true;
  return true;
}

void PeerTransport::Disconnect(int peer, const absl::Status& why) {
  if (!up(peer)) return;
  peers_.at(peer).link->Break(why);
  poll_again_ = true;
}

absl::Status PeerTransport::link(int peer) const {
  const auto found = peers_.find(peer);
  if (found == peers_.end()) return absl::NotFoundError(absl::StrCat("rank ", peer, " is no peer"));
  if (up(peer)) return absl::OkStatus();
  const Peer& down = found->second;
  const std::string last = down.last_error.ok() ? Dials(rank_, peer) ? "the first try is under way"
                                                                     : "it has not connected"
                                                : std::string(down.last_error.message());
  return absl::UnavailableError(absl::StrCat(
      "rank ", peer, " at ", down.entry.address, " is down since ",
      absl::FormatDuration(absl::Trunc(clock_.Now() - down.down_since, absl::Milliseconds(1))),
      ", ", down.tries, " tries: ", last));
}

std::optional<Wire> PeerTransport::wire(int peer) const {
  if (!up(peer)) return std::nullopt;
  return peers_.at(peer).link->wire();
}

void PeerTransport::Poll() {
  // A handler may poll too. The frames that it would get are handed over by the Poll that runs.
  if (polling_) return;
  polling_ = true;
  poll_again_ = false;
  for (auto& [rank, peer] : peers_) {
    if (peer.link == nullptr) continue;
    peer.link->Poll([this, &peer = peer](const FrameHeader& header, Bytes payload) {
      return OnFrame(peer, header, payload);
    });
  }
  sockets_.Wait(absl::ZeroDuration());
  // After all frames: what came before the end is handed over before the end is told.
  ReportBroken();
  polling_ = false;
  if (std::optional<AddressBook> next = std::exchange(next_peers_, std::nullopt)) {
    SetPeers(*next);
  }
}

bool PeerTransport::OnFrame(Peer& peer, const FrameHeader& header, Bytes payload) {
  handlers_.on_frame(peer.entry.rank, header, payload);
  return peer.link->broken().ok();
}

void PeerTransport::OnLinkEvents(int rank, uint32_t events) {
  Peer& peer = peers_.at(rank);
  if (!peer.link->broken().ok()) {
    // It is reported in a moment; its socket must not be ready forever before that.
    return;
  }
  peer.link->OnEvents(events, [this, &peer](const FrameHeader& header, Bytes payload) {
    return OnFrame(peer, header, payload);
  });
}

void PeerTransport::ReportBroken() {
  for (auto& [rank, peer] : peers_) {
    if (peer.link == nullptr || peer.link->broken().ok()) continue;
    Down(peer, absl::Status(peer.link->broken()));
  }
}

void PeerTransport::Down(Peer& peer, const absl::Status& why) {
  if (why.code() == absl::StatusCode::kDataLoss) {
    WarnOnce(
        absl::StrCat("rank ", peer.entry.rank, " generation ", absl::Hex(peer.entry.generation)),
        why);
  }
  // Before the handler: for it the peer is down, and a dial may begin anew.
  peer.link = nullptr;
  peer.down_since = clock_.Now();
  peer.last_error = why;
  peer.tries = 0;
  if (Dials(rank_, peer.entry.rank)) DialLater(peer);
  handlers_.on_down(peer.entry.rank, why);
}

absl::Duration PeerTransport::BeforeSleep() {
  // A break that was not told yet must not wait for the next frame.
  if (poll_again_) return absl::ZeroDuration();
  if (options_.spin > absl::ZeroDuration() && SpinForNews()) return absl::ZeroDuration();
  // Every link is armed even if one has news: AfterSleep disarms them all.
  bool news = false, shared = false;
  for (auto& [rank, peer] : peers_) {
    if (peer.link == nullptr) continue;
    news |= peer.link->Arm();
    shared |= peer.link->wire() == Wire::kShm;
  }
  armed_ = true;
  // A socket wakes the loop by itself. Rings depend on a bell, so with rings a sleep has an end.
  return news ? absl::ZeroDuration() : shared ? kSleepMax : absl::InfiniteDuration();
}

bool PeerTransport::SpinForNews() {
  const absl::Time end = clock_.Now() + options_.spin;
  // To look costs no system call and no wake-up.
  do {
    for (auto& [rank, peer] : peers_) {
      if (peer.link != nullptr && peer.link->HasNews()) return true;
    }
  } while (clock_.Now() < end);
  return false;
}

void PeerTransport::AfterSleep(bool timed_out) {
  if (std::exchange(armed_, false)) {
    for (auto& [rank, peer] : peers_) {
      if (peer.link != nullptr && peer.link->Disarm(timed_out)) ++doorbell_rescues_;
    }
  }
  Poll();
}

}  // namespace epic::cluster
