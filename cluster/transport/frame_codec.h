// Frames as bytes of an ordered stream: the header sealed and checked, the stream cut into frames,
// and the bytes that wait for room on it. On the wire each frame is padded to a multiple of 64
// bytes, so that a payload that is read where it lies is aligned to 64.
#pragma once

#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "cluster/transport/transport.h"

namespace epic::cluster {

inline constexpr size_t kFrameAlignment = 64;

// The bytes of a payload with its padding and without the header.
constexpr size_t PaddedBytes(size_t payload_bytes) {
  return (payload_bytes + kFrameAlignment - 1) / kFrameAlignment * kFrameAlignment;
}

struct FrameOrigin {
  int rank = 0;
  uint64_t generation = 0;
};

// Fills in what Transport::Send says. The parts together are at most kPayloadBytesMax (CHECK).
void SealHeader(const FrameOrigin& self, std::span<const Bytes> parts, bool with_payload_crc,
                FrameHeader* header);

// A frame as it goes on the wire: `header` (which must stay where it is), the parts, the padding.
void LayOut(const FrameHeader& header, std::span<const Bytes> parts, std::vector<Bytes>* frame);

// Checks what can be judged without knowing the sender: magic, version, crc, the extension bit and
// the length. Returns DataLoss, which names the field and its value.
absl::Status CheckHeader(const FrameHeader& header);

// Memory at addresses that are multiples of kFrameAlignment; not initialised.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(size_t size);
  std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t size_ = 0;
};

// Cuts one peer's stream into frames.
class FrameReader {
 public:
  // False: read no further.
  using OnFrame = absl::FunctionRef<bool(const FrameHeader& header, Bytes payload)>;

  // Frames of up to `in_place_bytes_max` with header and padding are handed over where they lie;
  // larger ones are collected, once their header has been checked.
  FrameReader(FrameOrigin from, bool with_payload_crc, size_t in_place_bytes_max)
      : from_(from), with_payload_crc_(with_payload_crc), in_place_max_(in_place_bytes_max) {}

  // Hands over the whole frames at the beginning of `bytes`, and returns how many bytes it used.
  // The caller keeps the rest and calls again when more has come. It must not call while `wanted`
  // is not empty. Returns DataLoss for bytes that are no frame of the peer.
  absl::StatusOr<size_t> Read(Bytes bytes, OnFrame on_frame);

  // Where the next bytes of the stream go while a large frame is collected; else empty.
  std::span<std::byte> wanted() const;
  // The first `count` bytes of `wanted` are there.
  absl::Status Received(size_t count, OnFrame on_frame);

 private:
  absl::Status CheckSource(const FrameHeader& header) const;
  absl::Status CheckPayload(const FrameHeader& header, Bytes payload) const;

  const FrameOrigin from_;
  const bool with_payload_crc_;
  const size_t in_place_max_;
  // The large frame that is being collected.
  FrameHeader header_;
  AlignedBytes payload_;  // kept for the next one
  size_t payload_wanted_ = 0, payload_got_ = 0;
};

// Bytes that the wire had no room for, in order.
class OutQueue {
 public:
  bool empty() const { return bytes_ == 0; }
  size_t bytes() const { return bytes_; }
  // Copies `parts`, without their first `skip` bytes.
  void Append(std::span<const Bytes> parts, size_t skip);
  // The first stretches, at most `count_max` of them.
  std::vector<Bytes> Front(size_t count_max) const;
  void Consume(size_t bytes);

 private:
  static constexpr size_t kChunkBytes = size_t{1} << 20;
  // Memory that was touched before is kept for the next large frame, up to this.
  static constexpr size_t kSpareChunksMax = 4;
  struct Chunk {
    std::unique_ptr<std::byte[]> data;
    size_t begin = 0, end = 0;
  };
  void Append(Bytes bytes);

  std::deque<Chunk> chunks_;
  std::vector<std::unique_ptr<std::byte[]>> spare_;
  size_t bytes_ = 0;
};

}  // namespace epic::cluster
