#include "cluster/transport/shm_ring.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace epic::cluster {
namespace {

constexpr size_t kControlBytes = 4096;  // a page, for both rings

size_t MemoryBytes(size_t ring_bytes) { return kControlBytes + 2 * ring_bytes; }
size_t MappedBytes(size_t ring_bytes) { return kControlBytes + 4 * ring_bytes; }

absl::Status Errno(const char* what) {
  return absl::ErrnoToStatus(errno, absl::StrCat("shared memory: ", what));
}

}  // namespace

absl::Status SharedRings::CheckSize(size_t ring_bytes) {
  if (std::has_single_bit(ring_bytes) && ring_bytes >= kRingBytesMin &&
      ring_bytes <= kRingBytesMax) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("ring_bytes is ", ring_bytes,
                                                 ": not a power of two from ", kRingBytesMin,
                                                 " to ", kRingBytesMax));
}

absl::StatusOr<SharedRings> SharedRings::Create(size_t ring_bytes) {
  RETURN_IF_ERROR(CheckSize(ring_bytes));
  UniqueFd fd(memfd_create("epic-rings", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return Errno("memfd_create");
  if (ftruncate(fd.get(), static_cast<off_t>(MemoryBytes(ring_bytes))) != 0) {
    return Errno("ftruncate");
  }
  // A peer that shrank the memory would kill this process with SIGBUS at its next access.
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return Errno("F_ADD_SEALS");
  }
  SharedRings rings(std::move(fd), ring_bytes);
  RETURN_IF_ERROR(rings.MapAll());
  return rings;
}

absl::StatusOr<SharedRings> SharedRings::Map(UniqueFd fd, size_t ring_bytes) {
  RETURN_IF_ERROR(CheckSize(ring_bytes));
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return absl::InvalidArgumentError("shared memory: not sealed against shrinking");
  }
  struct stat status;
  if (fstat(fd.get(), &status) != 0) return Errno("fstat");
  // Sealed against shrinking, so this stays true.
  if (static_cast<size_t>(status.st_size) != MemoryBytes(ring_bytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat("shared memory: size is ", status.st_size, ", not ", MemoryBytes(ring_bytes)));
  }
  SharedRings rings(std::move(fd), ring_bytes);
  RETURN_IF_ERROR(rings.MapAll());
  return rings;
}

absl::Status SharedRings::MapAll() {
  // One reservation for all, so that nothing can be mapped between the two copies of a ring.
  void* reserved = mmap(nullptr, MappedBytes(ring_bytes_), PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return Errno("mmap");
  base_ = static_cast<std::byte*>(reserved);
  const auto map = [this](std::byte* at, size_t bytes, size_t offset) {
    return mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd_.get(),
                static_cast<off_t>(offset)) != MAP_FAILED;
  };
  bool mapped = map(base_, kControlBytes, 0);
  for (int ring = 0; ring < 2; ++ring) {
    const size_t offset = kControlBytes + ring * ring_bytes_;
    // The same pages twice in a row: a stretch that passes the end goes on in the second copy.
    mapped = mapped && map(data(ring), ring_bytes_, offset) &&
             map(data(ring) + ring_bytes_, ring_bytes_, offset);
  }
  return mapped ? absl::OkStatus() : Errno("mmap");
}

SharedRings::SharedRings(SharedRings&& other) noexcept
    : fd_(std::move(other.fd_)),
      ring_bytes_(other.ring_bytes_),
      base_(std::exchange(other.base_, nullptr)) {}

SharedRings::~SharedRings() {
  if (base_ != nullptr) munmap(base_, MappedBytes(ring_bytes_));
}

RingControl& SharedRings::control(int ring) const {
  CHECK(ring == 0 || ring == 1) << " ring " << ring;
  return reinterpret_cast<RingControl*>(base_)[ring];
}

std::byte* SharedRings::data(int ring) const {
  return base_ + kControlBytes + 2 * ring * ring_bytes_;
}

RingWriter::RingWriter(const SharedRings& rings, int ring)
    : control_(rings.control(ring)), data_(rings.data(ring)), bytes_(rings.ring_bytes()) {}

absl::StatusOr<size_t> RingWriter::Room() {
  // acquire: the reader has read the bytes before it gave their room back.
  const uint64_t head = control_.head.load(std::memory_order_acquire);
  // Both hold for an honest reader: it reads on, and never beyond what was written.
  if (head < head_seen_ || head > tail_) {
    return absl::DataLossError(
        absl::StrCat("ring head is ", head, ": not within ", head_seen_, " and ", tail_));
  }
  head_seen_ = head;
  return bytes_ - (tail_ - head);
}

absl::StatusOr<size_t> RingWriter::Write(std::span<const Bytes> parts, size_t skip) {
  size_t room = bytes_ - (tail_ - head_seen_);
  size_t written = 0;
  for (Bytes part : parts) {
    const size_t skipped = std::min(skip, part.size());
    skip -= skipped;
    part = part.subspan(skipped);
    // The reader's index is read only when room seems short: its cache line belongs to the reader.
    if (part.size() > room) {
      ASSIGN_OR_RETURN(room, Room());
    }
    const size_t fits = std::min(room, part.size());
    if (fits > 0) std::memcpy(data_ + (tail_ & (bytes_ - 1)), part.data(), fits);
    tail_ += fits;
    written += fits;
    room -= fits;
    if (fits < part.size()) break;
  }
  return written;
}

bool RingWriter::Publish() {
  // seq_cst on both sides of the bell: with weaker orders this store and the load of the sleeper's
  // flag could change places, and reader and writer would each believe that the other is awake.
  // The exchange takes the flag away, so that one sleep is rung for once.
  control_.tail.store(tail_, std::memory_order_seq_cst);
  return control_.reader_sleeps.load(std::memory_order_seq_cst) != 0 &&
         control_.reader_sleeps.exchange(0, std::memory_order_seq_cst) != 0;
}

void RingWriter::Checked() { control_.checked.store(tail_, std::memory_order_release); }

bool RingWriter::Arm() {
  control_.writer_sleeps.store(1, std::memory_order_seq_cst);
  // Looks again after saying so: room may have come in between.
  const uint64_t head = control_.head.load(std::memory_order_seq_cst);
  return tail_ - head <= bytes_ / 2;
}

void RingWriter::Disarm() { control_.writer_sleeps.store(0, std::memory_order_relaxed); }

RingReader::RingReader(const SharedRings& rings, int ring)
    : control_(rings.control(ring)), data_(rings.data(ring)), bytes_(rings.ring_bytes()) {}

absl::StatusOr<Bytes> RingReader::Readable() {
  const uint64_t tail = control_.tail.load(std::memory_order_acquire);
  // Both hold for an honest writer: it never takes bytes back, nor writes over unread ones.
  if (tail < tail_seen_ || tail - head_ > bytes_) {
    return absl::DataLossError(
        absl::StrCat("ring tail is ", tail, ": not within ", tail_seen_, " and ", head_ + bytes_));
  }
  tail_seen_ = tail;
  return Bytes(data_ + (head_ & (bytes_ - 1)), tail - head_);
}

bool RingReader::Release() {
  control_.head.store(head_, std::memory_order_seq_cst);
  // A writer sleeps until half of the ring is free, so earlier bells would be for nothing.
  return tail_seen_ - head_ <= bytes_ / 2 &&
         control_.writer_sleeps.load(std::memory_order_seq_cst) != 0 &&
         control_.writer_sleeps.exchange(0, std::memory_order_seq_cst) != 0;
}

bool RingReader::Arm() {
  control_.reader_sleeps.store(1, std::memory_order_seq_cst);
  return control_.tail.load(std::memory_order_seq_cst) != tail_seen_;
}

void RingReader::Disarm() { control_.reader_sleeps.store(0, std::memory_order_relaxed); }

bool RingReader::HasChecked() const {
  const uint64_t checked = control_.checked.load(std::memory_order_acquire);
  // The peer's number: compared within what a ring can hold, never trusted.
  return checked > tail_seen_ && checked - tail_seen_ <= bytes_;
}

}  // namespace epic::cluster
