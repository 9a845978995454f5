#include "cluster/transport/loopback_transport.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace epic::cluster {

void LoopbackNetwork::Break(int a, int b) {
  const auto found = ranks_.find(a);
  if (found != ranks_.end()) found->second->Disconnect(b, absl::UnavailableError("broken"));
}

LoopbackTransport::LoopbackTransport(LoopbackNetwork& network, int rank, uint64_t generation)
    : network_(network), rank_(rank), generation_(generation) {
  CHECK(network.ranks_.emplace(rank, this).second) << "rank " << rank << " is there already";
}

LoopbackTransport::~LoopbackTransport() {
  SetPeers({});
  network_.ranks_.erase(rank_);
}

void LoopbackTransport::SetPeers(const AddressBook& peers) {
  std::map<int, Link> links;
  for (const RankAddress& entry : peers) links[entry.rank].generation = entry.generation;
  for (auto& [peer, link] : links_) {
    const auto kept = links.find(peer);
    if (kept != links.end() && kept->second.generation == link.generation) {
      kept->second = std::move(link);
    } else if (link.connected) {
      const auto other = network_.ranks_.find(peer);
      if (other == network_.ranks_.end()) continue;
      other->second->Cut(rank_, absl::UnavailableError(absl::StrCat("rank ", rank_, " left")));
    }
  }
  links_ = std::move(links);
}

bool LoopbackTransport::up(int peer) const {
  const auto found = links_.find(peer);
  return found != links_.end() && found->second.connected && found->second.told_up;
}

bool LoopbackTransport::Send(int peer, FrameHeader header, std::span<const Bytes> parts) {
  if (!up(peer)) return false;
  // The parts are the sender's and may change before the receiver polls, so they are copied.
  Frame frame{.header = header};
  for (const Bytes part : parts) {
    frame.payload.insert(frame.payload.end(), part.begin(), part.end());
  }
  CHECK_LE(frame.payload.size(), size_t{kPayloadBytesMax});
  // As a wire fills it in, but for the sums: here nothing could change a bit.
  frame.header.magic = kFrameMagic;
  frame.header.version = kFrameVersion;
  frame.header.source = rank_;
  frame.header.generation = generation_;
  frame.header.payload_bytes = static_cast<uint32_t>(frame.payload.size());
  network_.ranks_.at(peer)->links_.at(rank_).arrived.push_back(std::move(frame));
  return true;
}

void LoopbackTransport::Disconnect(int peer, const absl::Status& why) {
  Cut(peer, why);
  const auto other = network_.ranks_.find(peer);
  if (other != network_.ranks_.end()) other->second->Cut(rank_, why);
}

void LoopbackTransport::Poll() {
  // The numbers are copied, because handlers may change the peers.
  std::vector<int> peers;
  for (const auto& [peer, link] : links_) peers.push_back(peer);
  for (const int peer : peers) PollLink(peer);
}

// Handlers may change the peers, so the link is looked up anew after each.
void LoopbackTransport::PollLink(int peer) {
  const auto link = [&]() -> Link* {
    const auto found = links_.find(peer);
    return found != links_.end() ? &found->second : nullptr;
  };
  if (link() == nullptr) return;
  if (const absl::Status down = std::exchange(link()->down, absl::OkStatus()); !down.ok()) {
    if (handlers_.on_down) handlers_.on_down(peer, down);
  }
  // A pair that broke is connected again only after its end was told, so on_up and on_down take
  // turns.
  Connect(peer);
  if (link() != nullptr && link()->connected && !link()->told_up) {
    link()->told_up = true;
    if (handlers_.on_up) handlers_.on_up(peer);
  }
  const size_t count = link() != nullptr ? link()->arrived.size() : 0;
  for (size_t i = 0; i < count && link() != nullptr && !link()->arrived.empty(); ++i) {
    const Frame frame = std::move(link()->arrived.front());
    link()->arrived.pop_front();
    if (handlers_.on_frame) handlers_.on_frame(peer, frame.header, frame.payload);
  }
}

bool LoopbackTransport::Wants(int peer, uint64_t generation) const {
  const auto found = links_.find(peer);
  return found != links_.end() && found->second.generation == generation &&
         !found->second.connected && found->second.down.ok();
}

void LoopbackTransport::Connect(int peer) {
  const auto other = network_.ranks_.find(peer);
  if (other == network_.ranks_.end() || !Wants(peer, other->second->generation_)) return;
  if (!other->second->Wants(rank_, generation_)) return;
  for (Link* link : {&links_.at(peer), &other->second->links_.at(rank_)}) {
    link->connected = true;
    link->told_up = false;
    link->arrived.clear();
  }
}

// What has not been told of a connection that is gone is not told any more.
void LoopbackTransport::Cut(int peer, const absl::Status& why) {
  const auto found = links_.find(peer);
  if (found == links_.end() || !found->second.connected) return;
  found->second.connected = false;
  found->second.arrived.clear();
  if (found->second.told_up) found->second.down = why;
}

}  // namespace epic::cluster
