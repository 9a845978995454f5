#include "cluster/transport/peer_network.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/check.h"

namespace epic::cluster {
namespace {

// The first channel after kRows. Rows never wait until they are offered room (Poll).
constexpr Channel kFirstBulk{1};

}  // namespace

PeerNetwork::PeerNetwork(Transport& transport) : transport_(transport) {
  transport_.SetHandlers(
      {.on_up = [this](int rank) { OnUp(rank); },
       .on_frame = [this](int rank, const FrameHeader& header,
                          Bytes payload) { OnFrame(rank, header, payload); },
       .on_down = [this](int rank, const absl::Status& why) { OnDown(rank, why); }});
}

PeerNetwork::~PeerNetwork() { transport_.SetHandlers({}); }

void PeerNetwork::Open(Channel channel, ChannelHandlers handlers) {
  CHECK_LT(Index(channel), size_t{kChannelCount});
  CHECK(!users_[Index(channel)].open) << "channel " << Index(channel) << " is open";
  // A connection grants credits once, as it comes up: a channel that opens later would have none.
  CHECK(peers_.empty()) << "channel " << Index(channel) << " opens after the first peer";
  CHECK_GE(handlers.credits, 0);
  users_[Index(channel)] = {true, std::move(handlers)};
  shared_ = shared_ || channel != Channel::kRows;
}

void PeerNetwork::Close(Channel channel) {
  // The credits that peers have granted to this channel end with it.
  for (auto& [rank, peer] : peers_) peer.lanes[Index(channel)] = {};
  users_[Index(channel)] = {};
}

void PeerNetwork::SetPeers(Channel channel, const AddressBook& peers) {
  CHECK(users_[Index(channel)].open) << "channel " << Index(channel) << " is not open";
  for (auto& [rank, peer] : peers_) peer.lanes[Index(channel)].wanted = false;
  for (const RankAddress& address : peers) {
    Peer& peer = peers_[address.rank];
    // Another life of the rank: nothing that was agreed with the one before holds.
    if (peer.address.generation != address.generation) peer = {};
    peer.address = address;
    peer.lanes[Index(channel)].wanted = true;
  }
  std::erase_if(peers_, [](const auto& each) {
    return std::ranges::none_of(each.second.lanes, &Lane::wanted);
  });
  for (auto& [rank, peer] : peers_) {
    Lane& lane = peer.lanes[Index(channel)];
    // A channel that gave a peer up and wants it again is told anew that the peer is up.
    lane.told_up = lane.told_up && lane.wanted;
  }
  transport_.SetPeers(Wanted());
}

AddressBook PeerNetwork::Wanted() const {
  AddressBook wanted;
  for (const auto& [rank, peer] : peers_) wanted.push_back(peer.address);
  return wanted;
}

bool PeerNetwork::Send(Channel channel, int peer, FrameHeader header,
                       std::span<const Bytes> parts) {
  header.flags |= ChannelFlags(channel);
  return transport_.Send(peer, header, parts);
}

bool PeerNetwork::HasRoom(Channel channel, int peer) const {
  const Lane* lane = FindLane(channel, peer);
  if (lane == nullptr || lane->credits == 0 || !transport_.up(peer)) return false;
  // Bytes that wait here cannot be overtaken any more: they go ahead of every later frame.
  return channel == Channel::kRows || transport_.unsent_bytes(peer) == 0;
}

bool PeerNetwork::SendOnCredit(Channel channel, int peer, FrameHeader header,
                               std::span<const Bytes> parts) {
  if (!HasRoom(channel, peer)) return false;
  if (channel != Channel::kRows) {
    size_t bytes = 0;
    for (const Bytes part : parts) bytes += part.size();
    CHECK_LE(bytes, kBulkBytesMax) << "channel " << Index(channel);
  }
  if (!Send(channel, peer, header, parts)) return false;
  Lane& lane = peers_.at(peer).lanes[Index(channel)];
  // Only a frame that was sent has used a credit.
  --lane.credits;
  ++lane.outstanding;
  return true;
}

void PeerNetwork::GiveBack(Channel channel, int peer) {
  Peer* known = Find(peer);
  if (known == nullptr) return;
  Lane& lane = known->lanes[Index(channel)];
  CHECK_GT(lane.outstanding, 0) << "rank " << peer << " channel " << Index(channel);
  --lane.outstanding;
  OnGrant(channel, peer, 1);
}

// Never more than the protocol has: a hostile grant gains nothing.
void PeerNetwork::OnGrant(Channel channel, int rank, int count) {
  Lane& lane = peers_.at(rank).lanes[Index(channel)];
  const int free = users_[Index(channel)].handlers.credits - lane.outstanding;
  lane.credits = std::clamp(lane.credits + count, 0, std::max(free, 0));
}

void PeerNetwork::GrantMore(Channel channel, int peer, int count) {
  CHECK(count > 0 && count <= UINT16_MAX) << count;
  // A peer that is not up loses nothing: each connection begins with all credits.
  Send(channel, peer, {.kind = FrameKind::kCredit, .detail = static_cast<uint16_t>(count)}, {});
}

void PeerNetwork::RefuseUnknown(int peer, const FrameHeader& header) {
  ++unknown_frames_;
  // A refusal of a refusal could go back and forth for ever.
  if (header.kind == FrameKind::kNack || header.kind == FrameKind::kCredit) return;
  // What names the frame is sent back, so that the sender knows which of its dispatches was
  // refused.
  Send(ChannelOf(header), peer,
       {.kind = FrameKind::kNack,
        .layer = header.layer,
        .attempt = header.attempt,
        .dispatch = header.dispatch,
        .flags = static_cast<uint16_t>(header.flags & kFrameWeights),
        .detail = static_cast<uint16_t>(NackReason::kUnknown)},
       {});
}

int PeerNetwork::credits(Channel channel, int peer) const {
  const Lane* lane = FindLane(channel, peer);
  return lane != nullptr ? lane->credits : 0;
}

void PeerNetwork::Poll() {
  transport_.Poll();
  // Rows are sent as soon as there is something to send and room for it: nothing is left to offer.
  if (!shared_) return;
  std::vector<int> ranks;  // handlers may change the peers
  for (const auto& [rank, peer] : peers_) ranks.push_back(rank);
  for (const int rank : ranks) {
    TellUp(rank);
    OfferRoom(rank, kFirstBulk);
  }
}

void PeerNetwork::OnUp(int rank) {
  Peer* peer = Find(rank);
  if (peer == nullptr) return;
  peer->up = true;
  // A connection starts empty: what was granted on the one before is worth nothing on this one.
  for (Lane& lane : peer->lanes) lane = {.wanted = lane.wanted};
  for (size_t i = 0; i < users_.size(); ++i) {
    if (!users_[i].open || users_[i].handlers.credits == 0) continue;
    GrantMore(static_cast<Channel>(i), rank, users_[i].handlers.credits);
  }
  TellUp(rank);
}

// The lane is looked up anew for each channel: a handler may have changed the peers.
void PeerNetwork::TellUp(int rank) {
  for (size_t i = 0; i < users_.size(); ++i) {
    Peer* peer = Find(rank);
    if (peer == nullptr || !peer->up) return;
    Lane& lane = peer->lanes[i];
    if (!lane.wanted || std::exchange(lane.told_up, true)) continue;
    if (users_[i].handlers.on_up) users_[i].handlers.on_up(rank);
  }
}

void PeerNetwork::OnFrame(int rank, const FrameHeader& header, Bytes payload) {
  const Channel channel = ChannelOf(header);
  const User& user = users_[Index(channel)];
  if (!user.open) return RefuseUnknown(rank, header);
  if (header.kind != FrameKind::kCredit) {
    if (user.handlers.on_frame) user.handlers.on_frame(rank, header, payload);
    return;
  }
  if (Find(rank) == nullptr) return;
  OnGrant(channel, rank, header.detail);
  OfferRoom(rank, channel);
}

void PeerNetwork::OnDown(int rank, const absl::Status& why) {
  Peer* peer = Find(rank);
  if (peer == nullptr) return;
  peer->up = false;
  // All lanes are emptied before the first handler runs: a handler that uses another channel must
  // find no credits of the connection that has ended.
  std::array<bool, kChannelCount> told;
  for (size_t i = 0; i < users_.size(); ++i) {
    told[i] = peer->lanes[i].told_up;
    peer->lanes[i] = {.wanted = peer->lanes[i].wanted};
  }
  for (size_t i = 0; i < users_.size(); ++i) {
    if (told[i] && users_[i].handlers.on_down) users_[i].handlers.on_down(rank, why);
  }
}

// In order of priority. Each frame of a lower channel asks again whether the wire is still free.
void PeerNetwork::OfferRoom(int rank, Channel first) {
  for (size_t i = Index(first); i < users_.size(); ++i) {
    const auto channel = static_cast<Channel>(i);
    while (users_[i].handlers.on_room && HasRoom(channel, rank) &&
           users_[i].handlers.on_room(rank)) {
    }
  }
}

PeerNetwork::Peer* PeerNetwork::Find(int rank) {
  const auto found = peers_.find(rank);
  return found != peers_.end() ? &found->second : nullptr;
}

const PeerNetwork::Lane* PeerNetwork::FindLane(Channel channel, int rank) const {
  const auto found = peers_.find(rank);
  return found != peers_.end() ? &found->second.lanes[Index(channel)] : nullptr;
}

}  // namespace epic::cluster
