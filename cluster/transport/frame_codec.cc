#include "cluster/transport/frame_codec.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/crc32c.h"
#include "base/status.h"

namespace epic::cluster {
namespace {

constexpr std::byte kPadding[kFrameAlignment] = {};

uint32_t HeaderCrc(FrameHeader header) {
  // The field cannot cover itself, so it counts as 0 on both sides.
  header.crc = 0;
  return Crc32c(std::as_bytes(std::span(&header, 1)));
}

}  // namespace

void SealHeader(const FrameOrigin& self, std::span<const Bytes> parts, bool with_payload_crc,
                FrameHeader* header) {
  size_t bytes = 0;
  // Without a payload crc (shm) the field stays 0: no wire could change the bytes, and to sum them
  // would read every payload twice more.
  uint32_t crc = 0;
  for (Bytes part : parts) {
    bytes += part.size();
    if (with_payload_crc) crc = ExtendCrc32c(crc, part);
  }
  CHECK(bytes <= kPayloadBytesMax) << "payload of " << bytes << " bytes";
  header->magic = kFrameMagic;
  header->version = kFrameVersion;
  header->source = self.rank;
  header->generation = self.generation;
  header->payload_bytes = static_cast<uint32_t>(bytes);
  header->payload_crc = crc;
  header->crc = HeaderCrc(*header);
}

void LayOut(const FrameHeader& header, std::span<const Bytes> parts, std::vector<Bytes>* frame) {
  frame->clear();
  frame->push_back(std::as_bytes(std::span(&header, 1)));
  frame->insert(frame->end(), parts.begin(), parts.end());
  frame->push_back(Bytes(kPadding).first(PaddedBytes(header.payload_bytes) - header.payload_bytes));
}

absl::Status CheckHeader(const FrameHeader& header) {
  // Magic and version come before the crc: another version may have its crc in another place.
  if (header.magic != kFrameMagic) {
    return absl::DataLossError(
        absl::StrCat("frame magic is ", header.magic, ", not ", kFrameMagic));
  }
  if (header.version != kFrameVersion) {
    return absl::DataLossError(
        absl::StrCat("frame version is ", header.version, ", not ", kFrameVersion));
  }
  // Before any number of the header is used: what follows may be believed to be meant so.
  if (header.crc != HeaderCrc(header)) return absl::DataLossError("crc of a frame header is wrong");
  if ((header.flags & kFrameExtended) != 0) {
    return absl::DataLossError(absl::StrCat("frame flags is ", header.flags,
                                            ": bit 15 tells of an extended header, which version ",
                                            kFrameVersion, " does not have"));
  }
  if (header.payload_bytes > kPayloadBytesMax) {
    return absl::DataLossError(absl::StrCat("frame payload_bytes is ", header.payload_bytes,
                                            ", at most ", kPayloadBytesMax));
  }
  return absl::OkStatus();
}

// Not initialised: each byte is received before it is read, and payloads are megabytes.
AlignedBytes::AlignedBytes(size_t size)
    : data_(static_cast<std::byte*>(::operator new (size, std::align_val_t{kFrameAlignment}))),
      size_(size) {}

void AlignedBytes::Free::operator()(std::byte* data) const {
  ::operator delete (data, std::align_val_t{kFrameAlignment});
}

absl::StatusOr<size_t> FrameReader::Read(Bytes bytes, OnFrame on_frame) {
  CHECK(payload_wanted_ == 0);
  size_t used = 0;
  while (bytes.size() - used >= sizeof(FrameHeader)) {
    FrameHeader header;  // copied before it is checked: a peer may share the memory it lies in
    std::memcpy(&header, bytes.data() + used, sizeof(header));
    RETURN_IF_ERROR(CheckHeader(header));
    RETURN_IF_ERROR(CheckSource(header));
    const size_t padded = PaddedBytes(header.payload_bytes);
    // Memory is taken only for a header that was checked, and no more than kPayloadBytesMax.
    if (sizeof(header) + padded > in_place_max_) {
      header_ = header;
      if (payload_.size() < padded) payload_ = AlignedBytes(padded);
      payload_wanted_ = padded;
      payload_got_ = 0;
      return used + sizeof(header);
    }
    // The rest has not come. The frame stays with the caller, and its header is read again next
    // time.
    if (bytes.size() - used < sizeof(header) + padded) break;
    const Bytes payload = bytes.subspan(used + sizeof(header), header.payload_bytes);
    RETURN_IF_ERROR(CheckPayload(header, payload));
    used += sizeof(header) + padded;
    if (!on_frame(header, payload)) break;
  }
  return used;
}

std::span<std::byte> FrameReader::wanted() const {
  return {payload_.data() + payload_got_, payload_wanted_ - payload_got_};
}

absl::Status FrameReader::Received(size_t count, OnFrame on_frame) {
  CHECK(count <= payload_wanted_ - payload_got_);
  payload_got_ += count;
  if (payload_got_ < payload_wanted_) return absl::OkStatus();
  // Reset before the handler, which may end the connection that this reader belongs to.
  payload_wanted_ = payload_got_ = 0;
  const Bytes payload(payload_.data(), header_.payload_bytes);
  RETURN_IF_ERROR(CheckPayload(header_, payload));
  on_frame(header_, payload);
  return absl::OkStatus();
}

absl::Status FrameReader::CheckSource(const FrameHeader& header) const {
  if (header.source != from_.rank || header.generation != from_.generation) {
    return absl::DataLossError(absl::StrCat("frame source is rank ", header.source, " generation ",
                                            absl::Hex(header.generation), ", not rank ", from_.rank,
                                            " generation ", absl::Hex(from_.generation)));
  }
  // Other kinds pass: a newer peer may send them, and the channel refuses them one by one.
  if (header.kind == FrameKind::kHello) {
    return absl::DataLossError(
        absl::StrCat("frame kind is ", static_cast<int>(header.kind), ", a second hello"));
  }
  return absl::OkStatus();
}

absl::Status FrameReader::CheckPayload(const FrameHeader& header, Bytes payload) const {
  if (with_payload_crc_ && Crc32c(payload) != header.payload_crc) {
    return absl::DataLossError(
        absl::StrCat("crc of a frame payload of ", payload.size(), " bytes is wrong"));
  }
  return absl::OkStatus();
}

void OutQueue::Append(std::span<const Bytes> parts, size_t skip) {
  for (Bytes part : parts) {
    const size_t skipped = std::min(skip, part.size());
    skip -= skipped;
    Append(part.subspan(skipped));
  }
}

// In chunks of one size, so that memory which was used once serves the next frame whatever its
// length.
void OutQueue::Append(Bytes bytes) {
  bytes_ += bytes.size();
  while (!bytes.empty()) {
    if (chunks_.empty() || chunks_.back().end == kChunkBytes) {
      Chunk& fresh = chunks_.emplace_back();
      if (spare_.empty()) {
        fresh.data = std::make_unique_for_overwrite<std::byte[]>(kChunkBytes);
      } else {
        fresh.data = std::move(spare_.back());
        spare_.pop_back();
      }
    }
    Chunk& last = chunks_.back();
    const size_t fits = std::min(kChunkBytes - last.end, bytes.size());
    std::memcpy(last.data.get() + last.end, bytes.data(), fits);
    last.end += fits;
    bytes = bytes.subspan(fits);
  }
}

std::vector<Bytes> OutQueue::Front(size_t count_max) const {
  std::vector<Bytes> front;
  for (const Chunk& chunk : chunks_) {
    if (front.size() == count_max) break;
    front.emplace_back(chunk.data.get() + chunk.begin, chunk.end - chunk.begin);
  }
  return front;
}

void OutQueue::Consume(size_t bytes) {
  CHECK(bytes <= bytes_);
  bytes_ -= bytes;
  while (bytes > 0) {
    Chunk& first = chunks_.front();
    const size_t taken = std::min(bytes, first.end - first.begin);
    first.begin += taken;
    bytes -= taken;
    if (first.begin < first.end) continue;
    // A burst's memory is given back but for a few chunks, which the next burst finds touched.
    if (spare_.size() < kSpareChunksMax) spare_.push_back(std::move(first.data));
    chunks_.pop_front();
  }
}

}  // namespace epic::cluster
