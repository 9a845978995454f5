// Rings of bytes in memory that two processes share: one per direction, both in one memfd.
//
// The other process is not trusted: its indices are checked against what a ring can be each time
// they are read, its memory cannot shrink (sealed), and only data that is copied or read once is
// believed. One writer and one reader per ring, each of one thread.
//
// Publish, then check, on both sides: whoever goes to sleep says so and then looks again; whoever
// changes an index then looks whether the other sleeps and must be rung.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "cluster/transport/transport.h"

namespace epic::cluster {

inline constexpr size_t kRingBytesMin = 64 << 10;
inline constexpr size_t kRingBytesMax = 64 << 20;

// Lies in shared memory. The indices count bytes since the beginning.
struct RingControl {
  alignas(64) std::atomic<uint64_t> tail;  // written, of the writer
  std::atomic<uint64_t> checked;           // the tail for which the writer has rung if it had to
  alignas(64) std::atomic<uint64_t> head;  // read, of the reader
  alignas(64) std::atomic<uint32_t> reader_sleeps;
  alignas(64) std::atomic<uint32_t> writer_sleeps;
};
static_assert(std::atomic<uint64_t>::is_always_lock_free && sizeof(RingControl) == 256);

// The mapping of a memfd with the rings of a pair. Each ring is mapped twice in a row, so that any
// stretch of it is contiguous.
class SharedRings {
 public:
  // InvalidArgument unless it is a power of two within the limits above.
  static absl::Status CheckSize(size_t ring_bytes);
  static absl::StatusOr<SharedRings> Create(size_t ring_bytes);
  // Maps a descriptor that another process has sent. InvalidArgument if the descriptor is no memfd
  // of just that size which is sealed against shrinking.
  static absl::StatusOr<SharedRings> Map(UniqueFd fd, size_t ring_bytes);

  SharedRings(SharedRings&& other) noexcept;
  SharedRings& operator=(SharedRings&&) = delete;
  ~SharedRings();

  int fd() const { return fd_.get(); }
  // Its mapping stays.
  void CloseDescriptor() { fd_.reset(); }
  size_t ring_bytes() const { return ring_bytes_; }
  // Ring 0 is written by the creator, ring 1 by the other.
  RingControl& control(int ring) const;
  std::byte* data(int ring) const;

 private:
  SharedRings(UniqueFd fd, size_t ring_bytes) : fd_(std::move(fd)), ring_bytes_(ring_bytes) {}
  absl::Status MapAll();

  UniqueFd fd_;
  size_t ring_bytes_ = 0;
  std::byte* base_ = nullptr;
};

// The rings outlive both.
class RingWriter {
 public:
  RingWriter(const SharedRings& rings, int ring);

  // Writes as much as fits of `parts`, without their first `skip` bytes, and returns how many bytes
  // it wrote. DataLoss for an impossible index of the reader. The reader sees nothing of this
  // before Publish.
  absl::StatusOr<size_t> Write(std::span<const Bytes> parts, size_t skip);
  // True: the reader sleeps and must be rung now; then call Checked.
  bool Publish();
  void Checked();

  // The reader will ring when half of the ring is free; to ring for less would cost more wakes than
  // the room is worth. Returns true if half is free already.
  bool Arm();
  void Disarm();

 private:
  absl::StatusOr<size_t> Room();

  RingControl& control_;
  std::byte* const data_;
  const size_t bytes_;
  uint64_t tail_ = 0;
  uint64_t head_seen_ = 0;
};

class RingReader {
 public:
  RingReader(const SharedRings& rings, int ring);

  // What was published and not consumed. DataLoss for an impossible index of the writer.
  absl::StatusOr<Bytes> Readable();
  void Consume(size_t bytes) { head_ += bytes; }
  // Gives the consumed room back. True: the writer sleeps for it and must be rung. A reader must be
  // able to consume until half of the ring is free.
  bool Release();

  // More was published than Readable last told.
  bool HasMore() const { return control_.tail.load(std::memory_order_acquire) != tail_seen_; }

  // The writer will ring when there is more. Returns true if there is more already.
  bool Arm();
  void Disarm();
  // Whether there are bytes beyond what Readable last told for which the writer has rung if it had
  // to. A writer that dies or is delayed between publishing and ringing has not said so yet.
  bool HasChecked() const;

 private:
  RingControl& control_;
  const std::byte* const data_;
  const size_t bytes_;
  uint64_t head_ = 0;
  uint64_t tail_seen_ = 0;
};

}  // namespace epic::cluster
