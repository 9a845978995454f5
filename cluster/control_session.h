// ControlSession: one end's numbers and acknowledgements of a control stream, over any number of
// connections (protocol.md §8). A plain object: it gets frames and returns frames.
//
//   session.Connect(peer_acknowledged);            // the peer's hello arrived
//   while (auto frame = session.NextFrame()) …;    // to be written, in order
//   RETURN_IF_ERROR(session.OnFrame(frame, &fresh));
#pragma once

#include <cstdint>
#include <deque>
#include <optional>

#include "absl/status/status.h"
#include "proto/epic/v1/worker.pb.h"

namespace epic::cluster {

class ControlSession {
 public:
  static constexpr size_t kUnacknowledgedBytesMax = size_t{512} << 20;
  // An acknowledgement goes along with a message; alone it goes after so many messages or bytes. A
  // frame for each message of a busy rank would cost more than all that is done with the message.
  static constexpr uint64_t kAcknowledgedMessages = 16;
  static constexpr size_t kAcknowledgedBytes = size_t{1} << 20;

  // Queues a message. ResourceExhausted if the peer has not acknowledged for so long that
  // kUnacknowledgedBytesMax is passed: the session is of no use any more.
  absl::Status Send(v1::ControlMessage message);

  // A new connection whose peer has received whole all up to `peer_acknowledged`: the rest is
  // written again. InvalidArgument if that is impossible: it is another session's number.
  absl::Status Connect(uint64_t peer_acknowledged);

  // The next frame to write on this connection: a message, else an acknowledgement if one is due.
  std::optional<v1::ControlFrame> NextFrame();

  // A frame that arrived; `fresh` tells whether its message is new and to be handled. Repeated ones
  // are dropped. DataLoss for a gap or an impossible acknowledgement: this connection is broken.
  absl::Status OnFrame(const v1::ControlFrame& frame, bool* fresh);

  // Highest number received whole.
  uint64_t received() const { return received_; }
  size_t unacknowledged_count() const { return sent_.size(); }

 private:
  absl::Status Acknowledge(uint64_t number);
  bool AcknowledgementDue() const;

  std::deque<v1::ControlMessage> sent_;  // numbers acknowledged_ + 1, …
  size_t sent_bytes_ = 0;
  uint64_t acknowledged_ = 0;  // by the peer
  uint64_t written_ = 0;       // on this connection
  uint64_t received_ = 0;
  uint64_t told_ = 0;  // highest acknowledgement written on this connection
  size_t untold_bytes_ = 0;
};

}  // namespace epic::cluster
