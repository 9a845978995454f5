#include "cluster/grpc/session_driver.h"

#include <string>

#include "base/check.h"

namespace epic::cluster {

absl::Status SessionDriver::Send(v1::ControlMessage message) {
  absl::Status status = session_.Send(std::move(message));
  Pump();
  return status;
}

absl::Status SessionDriver::Attach(std::shared_ptr<ControlStream> stream,
                                   uint64_t peer_acknowledged, bool write_busy) {
  // A worker that dials again has lost the old stream, even if this end has not noticed yet.
  Detach(grpc::Status(grpc::StatusCode::CANCELLED, "replaced by a newer connection"));
  if (absl::Status status = session_.Connect(peer_acknowledged); !status.ok()) return status;
  CHECK(stream != nullptr);
  stream_ = std::move(stream);
  write_busy_ = write_busy;
  stream_->SetEvents({.on_frame = [this](const v1::ControlFrame& frame) { OnFrame(frame); },
                      .on_written =
                          [this] {
                            write_busy_ = false;
                            Pump();
                          },
                      .on_closed = [this](grpc::Status status) { Break(status); }});
  Pump();
  return absl::OkStatus();
}

void SessionDriver::Detach(const grpc::Status& status) {
  if (stream_ == nullptr) return;
  std::exchange(stream_, nullptr)->Close(status);
}

// The message's handler may destroy this driver, so `alive_` is looked at before anything else is.
void SessionDriver::OnFrame(const v1::ControlFrame& frame) {
  bool fresh = false;
  if (const absl::Status status = session_.OnFrame(frame, &fresh); !status.ok()) {
    return Break(grpc::Status(grpc::StatusCode::DATA_LOSS, std::string(status.message())));
  }
  const std::shared_ptr<bool> alive = alive_;
  if (fresh) on_message_(frame.message());
  if (*alive) Pump();
}

// gRPC takes one write at a time; on_written comes back here for the next.
void SessionDriver::Pump() {
  if (stream_ == nullptr || write_busy_) return;
  std::optional<v1::ControlFrame> frame = session_.NextFrame();
  if (!frame) return;
  write_busy_ = true;
  stream_->Write(*std::move(frame));
}

void SessionDriver::Break(const grpc::Status& status) {
  // Detached first: the owner finds no stream, and may destroy this driver.
  Detach(status);
  on_broken_(status);
}

}  // namespace epic::cluster
