// Frame: what travels between ranks of the exchange (docs/protocol.md §3): a fixed header and
// a payload. The same bytes on every transport, little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cluster/weights_id.h"

namespace epic::cluster {

enum class FrameKind : uint8_t {
  kHello = 1,     // of the transport itself
  kDispatch = 2,  // rows and the experts that they want
  kCombine = 3,   // one answer row per (row, expert), in the order of the dispatch
  kNack = 4,      // a dispatch is refused: NackReason
  kCredit = 5,    // room for more dispatches
};

enum class NackReason : uint8_t {
  kNotHere = 1,   // an expert is not held; the header tells the map here
  kNoCredit = 2,  // sent without room granted
  kBadFrame = 3,  // what it says does not fit together
  kRevoked = 4,   // the sender's generation is out of the world
  kUnknown = 5,   // the kind of frame, or its channel, means nothing here
};

// A named part of a connection, with credits of its own; lower numbers go first (peer_network.h).
enum class Channel : uint8_t {
  kRows = 0,  // dispatches of rows and their answers
};
inline constexpr int kChannelCount = 8;  // as many as three flag bits name

inline constexpr uint32_t kFrameMagic = 0x43495045;  // "EPIC"
inline constexpr uint8_t kFrameVersion = 1;

// 64 bytes on the wire. `crc` is CRC32C of the header with crc = 0.
struct FrameHeader {
  uint32_t magic = kFrameMagic;
  uint8_t version = kFrameVersion;
  FrameKind kind = FrameKind::kHello;
  uint16_t layer = 0;
  int32_t source = 0;       // rank
  uint32_t attempt = 0;     // the try of the dispatch (protocol.md: "try")
  uint64_t generation = 0;  // of the source
  uint64_t term = 0;        // of the map used; of a reply: held
  uint64_t map_number = 0;  // as `term`
  uint64_t dispatch = 0;    // id, never used again by (source, generation); a reply carries it back
  uint32_t payload_bytes = 0;
  uint32_t payload_crc = 0;  // CRC32C on tcp; 0 where memory is shared
  uint16_t flags = 0;        // kFrameDecode, WeightsFlags, ChannelFlags
  uint16_t detail = 0;       // NackReason of a kNack; of a kCredit: how many dispatches
  uint32_t crc = 0;
};
static_assert(sizeof(FrameHeader) == 64 && std::is_trivially_copyable_v<FrameHeader>);

// The bits of FrameHeader::flags. A bit that has no name here is sent as 0 and ignored on receipt.
// Bit 0: the rows are decode rows, which are served before prompt rows.
inline constexpr uint16_t kFrameDecode = 1;
// Bits 4 to 11: the WeightsId of a dispatch's rows; a reply carries it back.
inline constexpr int kFrameWeightsShift = 4;
inline constexpr uint16_t kFrameWeights = 0xff << kFrameWeightsShift;
// Bits 12 to 14: the Channel.
inline constexpr int kFrameChannelShift = 12;
inline constexpr uint16_t kFrameChannel = 7 << kFrameChannelShift;
// Bit 15: another 64 bytes of header follow. This version knows no such header and refuses the
// frame by name, for a reader that ignored the bit would lose its place in the stream.
inline constexpr uint16_t kFrameExtended = 1 << 15;

constexpr uint16_t WeightsFlags(WeightsId weights) {
  return static_cast<uint16_t>(NumberOf(weights) << kFrameWeightsShift);
}
constexpr uint16_t ChannelFlags(Channel channel) {
  return static_cast<uint16_t>(static_cast<int>(channel) << kFrameChannelShift);
}
constexpr Channel ChannelOf(const FrameHeader& header) {
  return static_cast<Channel>((header.flags & kFrameChannel) >> kFrameChannelShift);
}
// As the sender says: perhaps a set that is not known here.
constexpr WeightsId WeightsOf(const FrameHeader& header) {
  return static_cast<WeightsId>((header.flags & kFrameWeights) >> kFrameWeightsShift);
}

// Larger payloads are refused before anything is allocated.
inline constexpr uint32_t kPayloadBytesMax = 64u << 20;

}  // namespace epic::cluster
