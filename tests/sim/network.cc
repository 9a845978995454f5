#include "tests/sim/network.h"

#include <algorithm>

namespace epic::sim {

namespace {

// TCP_USER_TIMEOUT of the real transport, about.
constexpr absl::Duration kCutBreaks = absl::Milliseconds(700);
constexpr absl::Duration kNoticeMax = absl::Milliseconds(6);

}  // namespace

void SimNetwork::Register(SimTransport* transport, uint64_t generation) {
  processes_[generation] = transport;
}

void SimNetwork::Unregister(uint64_t generation) {
  processes_.erase(generation);
  for (auto& [name, pair] : pairs_) {
    if (name.first != generation && name.second != generation) continue;
    const int side = name.first == generation ? 0 : 1;
    pair.ends[side].transport = nullptr;
    pair.ends[side].wants = false;
    if (pair.open) BreakPair(name, absl::UnavailableError("the process is gone"));
  }
}

void SimNetwork::Want(uint64_t generation, uint64_t peer, bool wants) {
  const Name name = NameOf(generation, peer);
  Pair& pair = pairs_[name];
  End& end = pair.ends[name.first == generation ? 0 : 1];
  end.transport = processes_.at(generation);
  if (end.wants == wants) return;
  end.wants = wants;
  if (wants) return Dial(name, absl::ZeroDuration());
  end.told_up = false;
  if (pair.open) BreakPair(name, absl::UnavailableError("the peer left"));
}

void SimNetwork::Dial(const Name& name, absl::Duration pause) {
  Pair& pair = pairs_.at(name);
  if (pair.dialling) return;
  pair.dialling = true;
  const absl::Duration takes =
      pause + dice_.Between(absl::Microseconds(100), absl::Milliseconds(2));
  loop_.At(loop_.Now() + takes, [this, name] { Connect(name); });
}

void SimNetwork::Connect(const Name& name) {
  Pair& pair = pairs_.at(name);
  pair.dialling = false;
  End& a = pair.ends[0];
  End& b = pair.ends[1];
  if (pair.open || !a.wants || !b.wants) return;
  const int seat_a = a.transport->seat(), seat_b = b.transport->seat();
  if (a.told_up || b.told_up || CutNow(seat_a, seat_b) || CutNow(seat_b, seat_a)) {
    return Dial(name, dice_.Between(absl::Milliseconds(50), absl::Milliseconds(500)));
  }
  pair.open = true;
  ++pair.connection;
  for (const int side : {0, 1}) {
    End& end = pair.ends[side];
    end.told_up = true;
    end.last_arrival = loop_.Now();
    end.lost_after = absl::InfiniteFuture();
    const uint64_t peer = side == 0 ? name.second : name.first;
    end.transport->Arrive(
        {.kind = SimTransport::Kind::kUp, .generation = peer, .connection = pair.connection});
  }
}

void SimNetwork::Carry(const Name& name, int from, uint64_t connection, cluster::FrameHeader header,
                       std::vector<std::byte> payload) {
  Pair& pair = pairs_.at(name);
  End& to = pair.ends[1 - from];
  if (!pair.open || pair.connection != connection || to.transport == nullptr) return;
  absl::Time arrival = loop_.Now() + dice_.Between(absl::Microseconds(5), delay_max_);
  const auto cut = cuts_.find({pair.ends[from].transport->seat(), to.transport->seat()});
  if (cut != cuts_.end()) arrival = std::max(arrival, cut->second);
  to.last_arrival = arrival = std::max(arrival, to.last_arrival);
  loop_.At(arrival,
           [this, name, from, arrival, connection, header, payload = std::move(payload)]() mutable {
             Pair& pair = pairs_.at(name);
             End& to = pair.ends[1 - from];
             if (pair.connection != connection || arrival > to.lost_after) return;
             if (to.transport == nullptr || !to.told_up) return;
             trace_.Add(header.dispatch * 8 + static_cast<uint64_t>(header.kind));
             trace_.Add(header.attempt ^ payload.size() << 32);
             to.transport->Arrive({.kind = SimTransport::Kind::kFrame,
                                   .generation = from == 0 ? name.first : name.second,
                                   .header = header,
                                   .payload = std::move(payload)});
           });
}

void SimNetwork::BreakPair(const Name& name, const absl::Status& why) {
  Pair& pair = pairs_.at(name);
  if (!pair.open) return;
  pair.open = false;
  for (const int side : {0, 1}) {
    End& end = pair.ends[side];
    if (!end.told_up || end.transport == nullptr) continue;
    end.lost_after = loop_.Now() + dice_.Between(absl::ZeroDuration(), delay_max_ * 2);
    const absl::Time noticed = end.lost_after + dice_.Between(absl::Microseconds(1), kNoticeMax);
    loop_.At(noticed, [this, name, side, connection = pair.connection, why] {
      NoticeBreak(name, side, connection, why);
    });
  }
}

void SimNetwork::NoticeBreak(const Name& name, int side, uint64_t connection,
                             const absl::Status& why) {
  Pair& pair = pairs_.at(name);
  End& end = pair.ends[side];
  if (pair.connection != connection || end.transport == nullptr) return;
  if (std::exchange(end.told_up, false)) {
    const uint64_t peer = side == 0 ? name.second : name.first;
    end.transport->Arrive({.kind = SimTransport::Kind::kDown, .generation = peer, .why = why});
  }
  if (pair.ends[0].wants && pair.ends[1].wants) {
    Dial(name, dice_.Between(absl::Milliseconds(50), absl::Milliseconds(500)));
  }
}

bool SimNetwork::CutNow(int from_seat, int to_seat) const {
  const auto cut = cuts_.find({from_seat, to_seat});
  return cut != cuts_.end() && cut->second > loop_.Now();
}

void SimNetwork::Cut(int from_seat, int to_seat, absl::Duration lasts) {
  absl::Time& until = cuts_[{from_seat, to_seat}];
  until = std::max(until, loop_.Now() + lasts);
  loop_.At(loop_.Now() + kCutBreaks, [this, from_seat, to_seat] {
    if (CutNow(from_seat, to_seat)) Break(from_seat, to_seat);
  });
}

void SimNetwork::Break(int seat, int other_seat) {
  for (const auto& [name, pair] : pairs_) {
    const auto at = [&pair](int side, int seat) {
      return pair.ends[side].transport != nullptr && pair.ends[side].transport->seat() == seat;
    };
    if (!pair.open) continue;
    if ((at(0, seat) && at(1, other_seat)) || (at(1, seat) && at(0, other_seat))) {
      BreakPair(name, absl::UnavailableError("the connection broke"));
    }
  }
}

SimTransport::SimTransport(SimNetwork& network, int seat, uint64_t generation,
                           std::function<void()> wake)
    : network_(network), seat_(seat), generation_(generation), wake_(std::move(wake)) {
  network_.Register(this, generation);
}

SimTransport::~SimTransport() { network_.Unregister(generation_); }

void SimTransport::SetSelf(int rank, uint64_t generation) {
  rank_ = rank;
  if (generation == generation_) return;
  SetPeers({});
  network_.Unregister(generation_);
  generation_ = generation;
  network_.Register(this, generation_);
  arrived_.clear();
}

void SimTransport::SetPeers(const cluster::AddressBook& peers) {
  std::map<int, Peer> before = std::exchange(peers_, {});
  ranks_.clear();
  for (const cluster::RankAddress& entry : peers) {
    ranks_[entry.generation] = entry.rank;
    auto known = before.extract(entry.rank);
    const bool kept = !known.empty() && known.mapped().generation == entry.generation;
    peers_[entry.rank] = kept ? known.mapped() : Peer{.generation = entry.generation};
    if (!known.empty() && !kept) network_.Want(generation_, known.mapped().generation, false);
    if (!kept) network_.Want(generation_, entry.generation, true);
  }
  for (const auto& [rank, peer] : before) network_.Want(generation_, peer.generation, false);
}

bool SimTransport::up(int peer) const {
  const auto found = peers_.find(peer);
  return found != peers_.end() && found->second.up;
}

bool SimTransport::Send(int peer, cluster::FrameHeader header,
                        std::span<const cluster::Bytes> parts) {
  if (!up(peer)) return false;
  std::vector<std::byte> payload;
  for (const cluster::Bytes part : parts) payload.insert(payload.end(), part.begin(), part.end());
  header.source = rank_;
  header.generation = generation_;
  header.payload_bytes = static_cast<uint32_t>(payload.size());
  const auto& [other, is_up, connection] = peers_.at(peer);
  network_.Carry(SimNetwork::NameOf(generation_, other), generation_ < other ? 0 : 1, connection,
                 header, std::move(payload));
  return true;
}

void SimTransport::Disconnect(int peer, const absl::Status& why) {
  const auto found = peers_.find(peer);
  if (found == peers_.end() || !found->second.up) return;
  network_.BreakPair(SimNetwork::NameOf(generation_, found->second.generation), why);
}

void SimTransport::Arrive(Event event) {
  arrived_.push_back(std::move(event));
  wake_();
}

void SimTransport::Poll() {
  const std::vector<Event> events = std::exchange(arrived_, {});
  for (const Event& event : events) {
    const auto known = ranks_.find(event.generation);
    if (known == ranks_.end()) continue;
    const int rank = known->second;
    Peer& peer = peers_.at(rank);
    switch (event.kind) {
      case Kind::kUp:
        peer.up = true;
        peer.connection = event.connection;
        handlers_.on_up(rank);
        break;
      case Kind::kDown:
        peer.up = false;
        handlers_.on_down(rank, event.why);
        break;
      case Kind::kFrame:
        if (peer.up) handlers_.on_frame(rank, event.header, event.payload);
        break;
    }
  }
}

}  // namespace epic::sim
