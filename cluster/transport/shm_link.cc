#include "cluster/transport/shm_link.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace epic::cluster {
namespace {

// Room is given back at least so often while a large frame is collected.
constexpr size_t kPieceBytes = 256 << 10;

}  // namespace

ShmLink::ShmLink(UniqueFd socket, EpollSet& sockets, SharedRings rings, bool creator,
                       FrameOrigin self, FrameOrigin peer)
    : socket_(std::move(socket)),
      sockets_(sockets),
      rings_(std::move(rings)),
      writer_(rings_, creator ? 0 : 1),
      ring_reader_(rings_, creator ? 1 : 0),
      self_(self),
      frame_reader_(peer, /*with_payload_crc=*/false, rings_.ring_bytes() / 2) {
  // The mapping stays. A descriptor a pair would be thousands in a large world.
  rings_.CloseDescriptor();
}

ShmLink::~ShmLink() { sockets_.Unwatch(socket_.get()); }

void ShmLink::Send(const FrameHeader& header, std::span<const Bytes> parts) {
  FrameHeader sealed = header;
  SealHeader(self_, parts, /*with_payload_crc=*/false, &sealed);
  LayOut(sealed, parts, &frame_);
  size_t written = 0;
  // Behind queued bytes nothing may go directly: frames stay in order.
  if (queue_.empty()) {
    const absl::StatusOr<size_t> taken = writer_.Write(frame_, 0);
    if (!taken.ok()) return Break(taken.status());
    written = *taken;
    if (written > 0) Publish();
  }
  queue_.Append(frame_, written);
}

void ShmLink::Publish() {
  // Checked comes after the bell: a reader that finds bytes beyond `checked` must still expect it.
  if (writer_.Publish()) Ring();
  writer_.Checked();
}

void ShmLink::WriteQueued() {
  // Sixteen stretches at a time; the next call goes on where the ring was full.
  while (!queue_.empty() && broken().ok()) {
    const absl::StatusOr<size_t> written = writer_.Write(queue_.Front(16), 0);
    if (!written.ok()) return Break(written.status());
    if (*written == 0) return;
    queue_.Consume(*written);
    Publish();
  }
}

void ShmLink::Ring() {
  const char bell = 0;
  // A full socket is a bell that was not heard yet.
  if (send(socket_.get(), &bell, 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno != EAGAIN &&
      errno != EINTR) {
    Break(absl::UnavailableError(absl::StrCat("shm: the process is gone: ", std::strerror(errno))));
  }
}

bool ShmLink::ReadOnce(FrameReader::OnFrame on_frame) {
  const absl::StatusOr<Bytes> readable = ring_reader_.Readable();
  if (!readable.ok()) {
    Break(readable.status());
    return false;
  }
  if (readable->empty()) return false;
  size_t used = 0;
  // A frame that is larger than half the ring is collected piece by piece in memory of its own;
  // all others are handed over where they lie.
  if (const std::span<std::byte> wanted = frame_reader_.wanted(); !wanted.empty()) {
    used = std::min({wanted.size(), readable->size(), kPieceBytes});
    std::memcpy(wanted.data(), readable->data(), used);
    const absl::Status read = frame_reader_.Received(used, on_frame);
    if (!read.ok()) Break(read);
  } else {
    const absl::StatusOr<size_t> read = frame_reader_.Read(*readable, on_frame);
    if (!read.ok()) {
      Break(read.status());
    } else {
      used = *read;
    }
  }
  if (used == 0) return false;
  // Only after the handler has returned: until then the writer must not reuse the bytes.
  CHECK_LE(used, readable->size());
  ring_reader_.Consume(used);
  if (ring_reader_.Release()) Ring();
  return broken().ok();
}

void ShmLink::Poll(FrameReader::OnFrame on_frame) {
  if (!broken().ok()) return;
  WriteQueued();
  ReadAll(on_frame);
}

void ShmLink::ReadAll(FrameReader::OnFrame on_frame) {
  // Bounded, so that one peer cannot keep the thread.
  size_t rounds = 2 * rings_.ring_bytes() / kPieceBytes + 2;
  while (rounds > 0 && ReadOnce(on_frame)) --rounds;
  unread_ = rounds == 0;
}

void ShmLink::OnEvents(uint32_t events, FrameReader::OnFrame on_frame) {
  // Bells say only that there is something: one wake serves all that have rung.
  char bells[256];
  const ssize_t count = recv(socket_.get(), bells, sizeof(bells), MSG_DONTWAIT);
  if (count > 0 || (count < 0 && (errno == EAGAIN || errno == EINTR))) return;
  ReadAll(on_frame);  // what it wrote before it died is whole, and comes first
  Break(absl::UnavailableError("shm: the process is gone"));
}

bool ShmLink::Arm() {
  // Both are armed before either answer is used, so that no bell falls between them.
  const bool room = !queue_.empty() && writer_.Arm();
  return ring_reader_.Arm() || room || unread_;
}

bool ShmLink::Disarm(bool timed_out) {
  ring_reader_.Disarm();
  writer_.Disarm();
  if (!timed_out || !ring_reader_.HasChecked()) return false;
  // A bell that is there would have ended the sleep. Without one, although the writer has checked,
  // the timer has rescued this end.
  char bell;
  return recv(socket_.get(), &bell, 1, MSG_PEEK | MSG_DONTWAIT) < 0;
}

bool ShmLink::HasNews() { return unread_ || ring_reader_.HasMore(); }

}  // namespace epic::cluster
