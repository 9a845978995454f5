// One gRPC stream of ControlFrames, either side, as its owner on the loop sees it.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <utility>

#include "cluster/mailbox.h"
#include "proto/epic/v1/worker.grpc.pb.h"

namespace epic::cluster {

// Loop thread only; so are the events. After Close there are none.
class ControlStream {
 public:
  struct Events {
    std::function<void(const v1::ControlFrame&)> on_frame;
    std::function<void()> on_written;  // another frame may be written
    // With the server's status on the client's side. Close must still be called.
    std::function<void(grpc::Status)> on_closed;
  };
  virtual ~ControlStream() = default;
  virtual void SetEvents(Events events) = 0;
  // One at a time.
  virtual void Write(v1::ControlFrame frame) = 0;
  virtual void Close(grpc::Status status) = 0;
};

// What both reactors share. `Reactor` is grpc::ServerBidiReactor or grpc::ClientBidiReactor; the
// object keeps itself alive until gRPC is done with it.
template <class Reactor>
class ReactorStream : public ControlStream,
                      public Reactor,
                      public std::enable_shared_from_this<ReactorStream<Reactor>> {
 public:
  explicit ReactorStream(std::shared_ptr<Mailbox> mailbox) : mailbox_(std::move(mailbox)) {}

  void SetEvents(Events events) override { events_ = std::move(events); }

  void Write(v1::ControlFrame frame) override {
    if (closed_ || lost_) return;
    written_ = std::move(frame);
    this->StartWrite(&written_);
  }

  void Close(grpc::Status status) override {
    if (std::exchange(closed_, true)) return;
    events_ = {};
    End(status);
  }

  void OnReadDone(bool ok) override {
    ToLoop([this, ok] {
      if (closed_) return;
      if (!ok) {
        lost_ = true;
        return Lost(grpc::Status::OK);
      }
      if (events_.on_frame) {
        const auto on_frame = events_.on_frame;
        on_frame(read_);
      }
      if (!closed_) this->StartRead(&read_);
    });
  }

  void OnWriteDone(bool ok) override {
    ToLoop([this, ok] {
      if (closed_ || !ok || !events_.on_written) return;
      const auto on_written = events_.on_written;
      on_written();
    });
  }

 protected:
  // Lets gRPC finish the call; nothing is started after it.
  virtual void End(const grpc::Status& status) = 0;
  // The mailbox is closed, so nobody will call Close any more. May run on a thread of gRPC's.
  virtual void Orphaned() = 0;
  virtual void Lost(grpc::Status status) {
    if (!events_.on_closed) return;
    const auto on_closed = events_.on_closed;
    on_closed(std::move(status));
  }

  void ToLoop(std::function<void()> task) {
    auto self = this->shared_from_this();
    if (!mailbox_->Post([self, task = std::move(task)] { task(); })) Orphaned();
  }

  const std::shared_ptr<Mailbox> mailbox_;
  Events events_;
  bool closed_ = false;
  bool lost_ = false;  // nothing more can be read
  v1::ControlFrame read_, written_;
  std::shared_ptr<ReactorStream> self_;  // until OnDone
};

}  // namespace epic::cluster
