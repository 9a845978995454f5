// SessionDriver: a ControlSession on whichever stream there is at the moment.
#pragma once

#include <functional>
#include <memory>

#include "cluster/control_link.h"
#include "cluster/control_session.h"
#include "cluster/grpc/control_stream.h"

namespace epic::cluster {

// Loop thread only.
class SessionDriver {
 public:
  // `on_message` is called once for each message. `on_broken` is called when the stream is of no
  // use any more and has been closed.
  SessionDriver(std::function<void(const v1::ControlMessage&)> on_message,
                std::function<void(grpc::Status)> on_broken)
      : on_message_(std::move(on_message)), on_broken_(std::move(on_broken)) {}
  ~SessionDriver() {
    *alive_ = false;
    Detach(grpc::Status::CANCELLED);
  }

  absl::Status Send(v1::ControlMessage message);
  // Goes on over `stream`, whose peer has sent a hello with `peer_acknowledged`. `write_busy` says
  // that a frame (this end's hello or proof) is still being written.
  absl::Status Attach(std::shared_ptr<ControlStream> stream, uint64_t peer_acknowledged,
                      bool write_busy);
  // Closes the stream, if there is one.
  void Detach(const grpc::Status& status);
  bool attached() const { return stream_ != nullptr; }
  uint64_t received() const { return session_.received(); }

 private:
  void OnFrame(const v1::ControlFrame& frame);
  void Pump();
  void Break(const grpc::Status& status);

  ControlSession session_;
  std::function<void(const v1::ControlMessage&)> on_message_;
  std::function<void(grpc::Status)> on_broken_;
  std::shared_ptr<ControlStream> stream_;
  bool write_busy_ = false;
  // Handlers may destroy this.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace epic::cluster
