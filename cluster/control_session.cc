#include "cluster/control_session.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace epic::cluster {

absl::Status ControlSession::Send(v1::ControlMessage message) {
  // Kept until acknowledged: a redial writes it again.
  sent_bytes_ += message.ByteSizeLong();
  sent_.push_back(std::move(message));
  if (sent_bytes_ <= kUnacknowledgedBytesMax) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("control stream: ", sent_bytes_,
                                                   " bytes are not acknowledged, at most ",
                                                   kUnacknowledgedBytesMax, " may be"));
}

absl::Status ControlSession::Connect(uint64_t peer_acknowledged) {
  if (!Acknowledge(peer_acknowledged).ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("control stream: the peer goes on after message ", peer_acknowledged,
                     ", this end has ", acknowledged_, " to ", acknowledged_ + sent_.size()));
  }
  // Everything that the peer has not received whole is written again on this connection.
  written_ = acknowledged_;
  told_ = received_;
  untold_bytes_ = 0;
  return absl::OkStatus();
}

bool ControlSession::AcknowledgementDue() const {
  return received_ - told_ >= kAcknowledgedMessages || untold_bytes_ >= kAcknowledgedBytes;
}

std::optional<v1::ControlFrame> ControlSession::NextFrame() {
  CHECK(written_ >= acknowledged_ && written_ <= acknowledged_ + sent_.size())
      << " written " << written_ << ", acknowledged " << acknowledged_ << ", kept " << sent_.size();
  const bool message_waits = written_ < acknowledged_ + sent_.size();
  if (!message_waits && !AcknowledgementDue()) return std::nullopt;
  v1::ControlFrame frame;
  // Each frame acknowledges, so a busy direction needs no frames of its own for that.
  frame.set_acknowledged(received_);
  told_ = received_;
  untold_bytes_ = 0;
  if (message_waits) {
    *frame.mutable_message() = sent_[written_ - acknowledged_];
    frame.set_number(++written_);
  }
  return frame;
}

absl::Status ControlSession::OnFrame(const v1::ControlFrame& frame, bool* fresh) {
  *fresh = false;
  // An older acknowledgement than one seen is what a repeated frame carries, and no fault.
  RETURN_IF_ERROR(Acknowledge(std::max(frame.acknowledged(), acknowledged_)));
  if (frame.number() == 0 || frame.number() <= received_) return absl::OkStatus();
  // gRPC keeps order within a stream, so a gap means a broken peer.
  if (frame.number() != received_ + 1) {
    return absl::DataLossError(absl::StrCat("control stream: message ", frame.number(),
                                            " arrived, ", received_ + 1, " was next"));
  }
  received_ = frame.number();
  untold_bytes_ += frame.ByteSizeLong();
  *fresh = true;
  return absl::OkStatus();
}

absl::Status ControlSession::Acknowledge(uint64_t number) {
  if (number < acknowledged_ || number > acknowledged_ + sent_.size()) {
    return absl::DataLossError(absl::StrCat("control stream: message ", number,
                                            " is acknowledged, ", acknowledged_, " to ",
                                            acknowledged_ + sent_.size(), " are possible"));
  }
  for (; acknowledged_ < number; ++acknowledged_) {
    sent_bytes_ -= sent_.front().ByteSizeLong();
    sent_.pop_front();
  }
  // The peer may acknowledge what an earlier connection wrote and this one has not.
  written_ = std::max(written_, acknowledged_);
  return absl::OkStatus();
}

}  // namespace epic::cluster
