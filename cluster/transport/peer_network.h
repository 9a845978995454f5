// PeerNetwork: the peers of one rank and the named channels to them. It owns the peer list and the
// handlers of a Transport, so that several users (rows today; pages of KV, experts and weights
// later) share one connection with each peer and none of them owns it.
//
//   PeerNetwork network(transport);
//   network.Open(Channel::kRows, {.credits = 2, .on_up = …, .on_frame = …});  // before any peer
//   network.SetPeers(Channel::kRows, addresses);                              // each newer map
//   while (…) network.Poll();                                                 // the rank's loop
//
// Credits. A connection that comes up grants each open channel's `credits` to the other side, by a
// kCredit frame of that channel. SendOnCredit takes one; GiveBack returns it when the answer has
// come, and GrantMore grants again where frames are not answered. The credits of a channel serve no
// other channel.
//
// Priorities. Channels of lower numbers go first. Rows are sent at once. A frame of any other
// channel is sent only while nothing of the connection waits for the wire, and is at most
// kBulkBytesMax long. So a row waits for at most credits × kBulkBytesMax bytes of each such
// channel.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>

#include "absl/status/status.h"
#include "cluster/address_book.h"
#include "cluster/transport/transport.h"

namespace epic::cluster {

// The longest payload of a frame of a channel other than kRows: about 20 µs at 100 Gbit/s.
inline constexpr size_t kBulkBytesMax = 256 << 10;

// What a channel's user is told. Empty handlers are not called. They may use the network.
struct ChannelHandlers {
  int credits = 0;  // how many frames each peer may send on credit at a time
  std::function<void(int peer)> on_up;
  // Any frame of the channel but kCredit. The peer may be one that this channel did not ask for.
  // See TransportHandlers for what was checked.
  std::function<void(int peer, const FrameHeader& header, Bytes payload)> on_frame;
  std::function<void(int peer, const absl::Status& why)> on_down;
  // There is room to send on credit. True: a frame was sent; the next may be asked for.
  std::function<bool(int peer)> on_room;
};

// One thread, the rank's loop.
class PeerNetwork {
 public:
  // The transport outlives this; its handlers are set here.
  explicit PeerNetwork(Transport& transport);
  ~PeerNetwork();
  PeerNetwork(const PeerNetwork&) = delete;
  PeerNetwork& operator=(const PeerNetwork&) = delete;

  // Before any channel has peers.
  void Open(Channel channel, ChannelHandlers handlers);
  // Its handlers are not called again. Peers that no other channel wants go with the next SetPeers.
  void Close(Channel channel);

  // The peers that the channel wants from now on; those that no channel wants are disconnected,
  // without on_down. A peer that is connected already, for another channel, is told as up by the
  // next Poll.
  void SetPeers(Channel channel, const AddressBook& peers);

  // Sends a frame that needs no credit: an answer or a refusal. See Transport::Send.
  bool Send(Channel channel, int peer, FrameHeader header, std::span<const Bytes> parts);
  // Whether SendOnCredit would send.
  bool HasRoom(Channel channel, int peer) const;
  // Takes a credit and sends. False, and nothing happened, if the peer is not up, no credit is
  // left, or (not of kRows) the wire is not free.
  bool SendOnCredit(Channel channel, int peer, FrameHeader header, std::span<const Bytes> parts);
  // The answer to a SendOnCredit of this connection has come: its credit may be used again.
  void GiveBack(Channel channel, int peer);
  // Lets the peer send `count` more frames on credit.
  void GrantMore(Channel channel, int peer, int count);
  // Answers a frame whose kind or channel means nothing here.
  void RefuseUnknown(int peer, const FrameHeader& header);

  // Granted to this rank and not used.
  int credits(Channel channel, int peer) const;
  // Ends the connection, for all channels. As Transport::Disconnect.
  void Disconnect(int peer, const absl::Status& why) { transport_.Disconnect(peer, why); }
  // Hands over what has arrived, and gives room to the channels that wait for it.
  void Poll();

  // Frames of channels that are not open here.
  int64_t unknown_frames() const { return unknown_frames_; }

 private:
  // One channel of one connection.
  struct Lane {
    bool wanted = false;
    bool told_up = false;
    int credits = 0;      // granted and not used
    int outstanding = 0;  // used, and not given back
  };
  struct Peer {
    RankAddress address;
    bool up = false;
    std::array<Lane, kChannelCount> lanes;
  };
  struct User {
    bool open = false;
    ChannelHandlers handlers;
  };

  static size_t Index(Channel channel) { return static_cast<size_t>(channel); }
  void OnUp(int rank);
  void OnFrame(int rank, const FrameHeader& header, Bytes payload);
  void OnDown(int rank, const absl::Status& why);
  void OnGrant(Channel channel, int rank, int count);
  void TellUp(int rank);
  // To channels from `first` on.
  void OfferRoom(int rank, Channel first);
  Peer* Find(int rank);
  const Lane* FindLane(Channel channel, int rank) const;
  AddressBook Wanted() const;

  Transport& transport_;
  std::array<User, kChannelCount> users_;  // by channel
  std::map<int, Peer> peers_;              // by rank
  bool shared_ = false;                    // a channel besides kRows is open
  int64_t unknown_frames_ = 0;
};

}  // namespace epic::cluster
