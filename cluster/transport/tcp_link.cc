#include "cluster/transport/tcp_link.h"

#include <limits.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace epic::cluster {
namespace {

// Small frames are read many at a time into one buffer; a frame of more than kInPlaceBytesMax gets
// memory of its own, so that its payload is not copied twice. Not measured.
constexpr size_t kBufferBytes = 256 << 10;
constexpr size_t kInPlaceBytesMax = 64 << 10;
// Of one call, so that one peer cannot keep the thread.
constexpr size_t kReadBytesMax = 16 << 20;

bool WouldBlock(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

absl::Status Gone(const char* what, int error) {
  return absl::UnavailableError(absl::StrCat("tcp: ", what, ": ", std::strerror(error)));
}

}  // namespace

TcpLink::TcpLink(UniqueFd socket, EpollSet& sockets, FrameOrigin self, FrameOrigin peer)
    : socket_(std::move(socket)),
      sockets_(sockets),
      self_(self),
      reader_(peer, /*with_payload_crc=*/true, kInPlaceBytesMax),
      buffer_(kBufferBytes) {}

TcpLink::~TcpLink() { sockets_.Unwatch(socket_.get()); }

void TcpLink::Send(const FrameHeader& header, std::span<const Bytes> parts) {
  FrameHeader sealed = header;
  SealHeader(self_, parts, /*with_payload_crc=*/true, &sealed);
  LayOut(sealed, parts, &frame_);
  const bool queued = !queue_.empty();
  const size_t written = queued ? 0 : Write(frame_);
  if (!broken().ok()) return;
  queue_.Append(frame_, written);
  // EPOLLOUT only while something waits: it is true of an empty socket all the time.
  if (!queued && !queue_.empty()) sockets_.SetEvents(socket_.get(), EPOLLIN | EPOLLOUT);
}

size_t TcpLink::Write(std::span<const Bytes> parts) {
  size_t written = 0, first = 0, skip = 0;
  while (true) {
    // Past what is written, then as many parts as one call takes.
    while (first < parts.size() && skip >= parts[first].size()) skip -= parts[first++].size();
    if (first == parts.size()) return written;
    stretches_.clear();
    size_t asked = 0;
    for (size_t i = first; i < parts.size() && stretches_.size() < IOV_MAX; ++i) {
      const Bytes part = i == first ? parts[i].subspan(skip) : parts[i];
      // The kernel takes empty stretches, but they count against IOV_MAX.
      if (part.empty()) continue;
      stretches_.push_back({const_cast<std::byte*>(part.data()), part.size()});
      asked += part.size();
    }
    msghdr message{};
    message.msg_iov = stretches_.data();
    message.msg_iovlen = stretches_.size();
    const ssize_t count = sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && !WouldBlock(errno)) Break(Gone("send", errno));
    if (count < 0) return written;
    written += count;
    skip += count;
    // A short write means a full socket: another call would only say so.
    if (static_cast<size_t>(count) < asked) return written;  // full
  }
}

void TcpLink::WriteQueued() {
  if (queue_.empty()) return;
  const size_t written = Write(queue_.Front(IOV_MAX));
  queue_.Consume(written);
  if (queue_.empty() && broken().ok()) sockets_.SetEvents(socket_.get(), EPOLLIN);
}

void TcpLink::OnEvents(uint32_t events, FrameReader::OnFrame on_frame) {
  if (events & EPOLLOUT) WriteQueued();
  if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) Read(on_frame);
}

void TcpLink::Read(FrameReader::OnFrame on_frame) {
  for (size_t total = 0; total < kReadBytesMax && broken().ok();) {
    const std::span<std::byte> wanted = reader_.wanted();
    const std::span<std::byte> into =
        // The rest of a large frame goes to its own memory, everything else into the buffer.
        wanted.empty() ? std::span(buffer_.data() + end_, buffer_.size() - end_) : wanted;
    const ssize_t count = recv(socket_.get(), into.data(), into.size(), MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && WouldBlock(errno)) return;
    if (count < 0) return Break(Gone("receive", errno));
    if (count == 0) return Break(absl::UnavailableError("tcp: the peer closed the connection"));
    total += count;
    absl::Status read;
    if (wanted.empty()) {
      end_ += count;
    } else {
      read = reader_.Received(count, on_frame);
    }
    // A handler may have ended the connection.
    if (read.ok() && broken().ok()) read = CutFrames(on_frame);
    if (!read.ok()) return Break(read);
    // As above: a short read saves the call that would find nothing.
    if (static_cast<size_t>(count) < into.size()) return;  // empty
  }
}

absl::Status TcpLink::CutFrames(FrameReader::OnFrame on_frame) {
  CHECK_LE(end_, buffer_.size());
  while (begin_ < end_) {
    if (const std::span<std::byte> wanted = reader_.wanted(); !wanted.empty()) {
      const size_t count = std::min(wanted.size(), end_ - begin_);
      std::memcpy(wanted.data(), buffer_.data() + begin_, count);
      begin_ += count;
      RETURN_IF_ERROR(reader_.Received(count, on_frame));
    } else {
      ASSIGN_OR_RETURN(const size_t used,
                       reader_.Read({buffer_.data() + begin_, end_ - begin_}, on_frame));
      begin_ += used;
      if (used == 0) break;
    }
    if (!broken().ok()) return absl::OkStatus();
  }
  // Frames begin at multiples of 64, so what is moved to the front stays aligned.
  if (begin_ == end_) {
    begin_ = end_ = 0;
  // Moved only when the room behind could be too little for the largest frame that is read here.
  } else if (buffer_.size() - begin_ < 2 * kInPlaceBytesMax) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  return absl::OkStatus();
}

}  // namespace epic::cluster
