#include "cluster/grpc/control_server.h"

#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "cluster/grpc/control_stream.h"
#include "cluster/grpc/session_driver.h"
#include "cluster/mailbox.h"
#include "cluster/version.h"

namespace epic::cluster {
namespace {

class ServerStream
    : public ReactorStream<grpc::ServerBidiReactor<v1::ControlFrame, v1::ControlFrame>> {
 public:
  using ReactorStream::ReactorStream;
  void Begin(std::shared_ptr<ServerStream> self) {
    self_ = std::move(self);
    StartRead(&read_);
  }
  void OnDone() override { self_.reset(); }

 protected:
  void End(const grpc::Status& status) override { FinishOnce(status); }
  void Orphaned() override {
    FinishOnce(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the coordinator is going away"));
  }

 private:
  void FinishOnce(const grpc::Status& status) {
    if (!finished_.exchange(true)) this->Finish(status);
  }
  std::atomic<bool> finished_ = false;
};

}  // namespace

struct ControlServer::State : public std::enable_shared_from_this<State> {
  class Service;
  // One generation of a worker.
  struct Peer {
    std::unique_ptr<SessionDriver> driver;
    ControlLinkHandlers handlers;
    TimerId redial_timer = 0;
  };
  // What the owner of a generation holds.
  class Link : public ControlLink {
   public:
    Link(std::weak_ptr<State> state, uint64_t generation)
        : state_(std::move(state)), generation_(generation) {}
    ~Link() override {
      if (const auto state = state_.lock()) state->Forget(generation_);
    }
    void Send(v1::ControlMessage message) override {
      if (const auto state = state_.lock()) state->Send(generation_, std::move(message));
    }

   private:
    const std::weak_ptr<State> state_;
    const uint64_t generation_;
  };

  State(Env e, uint64_t t, std::string b, OnWorker o)
      : env(e),
        term(t),
        build_id(std::move(b)),
        on_worker(std::move(o)),
        mailbox(std::make_shared<Mailbox>(e.loop)) {}

  void Accept(std::shared_ptr<ControlStream> stream);
  void OnHello(const std::shared_ptr<ControlStream>& stream, const v1::ControlFrame& frame);
  grpc::Status Check(const v1::ControlFrame& frame) const;
  void AddPeer(const v1::ControlHello& hello);
  void OnBroken(uint64_t generation, const std::string& why);
  void Down(uint64_t generation, absl::Status status);
  void Forget(uint64_t generation);
  void Send(uint64_t generation, v1::ControlMessage message);
  void Close();

  Env env;
  const uint64_t term;
  const std::string build_id;
  OnWorker on_worker;
  const std::shared_ptr<Mailbox> mailbox;
  std::unique_ptr<Service> service;
  std::map<uint64_t, std::shared_ptr<Peer>> peers;
  std::set<uint64_t> revoked;                         // generations that were down once
  std::set<std::shared_ptr<ControlStream>> greeting;  // without a hello so far
  bool closed = false;
};

class ControlServer::State::Service : public v1::WorkerControl::CallbackService {
 public:
  Service(std::weak_ptr<State> state, std::shared_ptr<Mailbox> mailbox)
      : state_(std::move(state)), mailbox_(std::move(mailbox)) {}

  grpc::ServerBidiReactor<v1::ControlFrame, v1::ControlFrame>* Connect(
      grpc::CallbackServerContext*) override {
    auto stream = std::make_shared<ServerStream>(mailbox_);
    // Before the first read, so that its hello finds the events.
    mailbox_->Post([state = state_, stream] {
      if (const auto alive = state.lock()) alive->Accept(stream);
    });
    stream->Begin(stream);
    return stream.get();
  }

 private:
  const std::weak_ptr<State> state_;
  const std::shared_ptr<Mailbox> mailbox_;
};

void ControlServer::State::Accept(std::shared_ptr<ControlStream> stream) {
  if (closed) return stream->Close(grpc::Status(grpc::StatusCode::UNAVAILABLE, "going away"));
  greeting.insert(stream);
  const std::weak_ptr<ControlStream> weak = stream;
  stream->SetEvents({.on_frame =
                         [this, weak](const v1::ControlFrame& frame) {
                           if (const auto alive = weak.lock()) OnHello(alive, frame);
                         },
                     .on_written = nullptr,
                     .on_closed =
                         [this, weak](const grpc::Status&) {
                           const auto alive = weak.lock();
                           if (alive == nullptr) return;
                           greeting.erase(alive);
                           alive->Close(grpc::Status::CANCELLED);
                         }});
}

grpc::Status ControlServer::State::Check(const v1::ControlFrame& frame) const {
  const v1::ControlHello& hello = frame.hello();
  if (!frame.has_hello())
    return {grpc::StatusCode::INVALID_ARGUMENT, "the first frame is no hello"};
  if (hello.protocol_version() != kProtocolVersion || hello.build_id() != build_id) {
    return {grpc::StatusCode::FAILED_PRECONDITION,
            absl::StrCat("the worker is build ", hello.build_id(), " with protocol ",
                         hello.protocol_version(), ", the coordinator build ", build_id,
                         " with protocol ", kProtocolVersion)};
  }
  if (hello.term() != 0 && hello.term() != term) {
    return {grpc::StatusCode::ABORTED, "another life of the coordinator"};
  }
  const bool known = peers.count(hello.generation()) > 0;
  if (revoked.count(hello.generation()) > 0 || (!known && hello.term() != 0)) {
    return {grpc::StatusCode::ABORTED, "this generation of the worker counts as lost"};
  }
  return grpc::Status::OK;
}

void ControlServer::State::OnHello(const std::shared_ptr<ControlStream>& stream,
                                   const v1::ControlFrame& frame) {
  greeting.erase(stream);
  if (const grpc::Status status = Check(frame); !status.ok()) {
    LOG_WARNING("refused a worker: {}", status.error_message());
    return stream->Close(status);
  }
  const uint64_t generation = frame.hello().generation();
  if (peers.count(generation) == 0) AddPeer(frame.hello());
  const auto found = peers.find(generation);
  if (found == peers.end()) {
    return stream->Close(
        grpc::Status(grpc::StatusCode::ABORTED, "the coordinator does not want it"));
  }
  const std::shared_ptr<Peer> peer = found->second;
  if (peer->redial_timer != 0) env.loop.Cancel(std::exchange(peer->redial_timer, 0));
  v1::ControlFrame answer;
  answer.mutable_hello()->set_protocol_version(kProtocolVersion);
  answer.mutable_hello()->set_term(term);
  answer.mutable_hello()->set_build_id(build_id);
  answer.set_acknowledged(peer->driver->received());
  stream->Write(std::move(answer));
  const absl::Status status =
      peer->driver->Attach(stream, frame.acknowledged(), /*write_busy=*/true);
  if (status.ok()) return;
  stream->Close(grpc::Status(grpc::StatusCode::ABORTED, std::string(status.message())));
  Down(generation, status);
}

void ControlServer::State::AddPeer(const v1::ControlHello& hello) {
  const uint64_t generation = hello.generation();
  auto peer = std::make_shared<Peer>();
  peer->driver = std::make_unique<SessionDriver>(
      [this, generation](const v1::ControlMessage& message) {
        const auto found = peers.find(generation);
        if (found == peers.end() || !found->second->handlers.on_message) return;
        const std::shared_ptr<Peer> alive = found->second;
        alive->handlers.on_message(message);
      },
      [this, generation](const grpc::Status& status) {
        OnBroken(generation, status.error_message());
      });
  peers[generation] = peer;
  peer->handlers = on_worker(hello, std::make_unique<Link>(weak_from_this(), generation));
}

void ControlServer::State::OnBroken(uint64_t generation, const std::string&) {
  const auto found = peers.find(generation);
  if (closed || found == peers.end() || found->second->redial_timer != 0) return;
  found->second->redial_timer = env.loop.At(env.clock.Now() + kRedialTime, [this, generation] {
    Down(generation, absl::UnavailableError("the worker's connection ended"));
  });
}

void ControlServer::State::Down(uint64_t generation, absl::Status status) {
  const auto found = peers.find(generation);
  if (found == peers.end()) return;
  const std::shared_ptr<Peer> peer = found->second;
  Forget(generation);
  if (peer->handlers.on_down) peer->handlers.on_down(std::move(status));
}

void ControlServer::State::Forget(uint64_t generation) {
  const auto found = peers.find(generation);
  if (found == peers.end()) return;
  const std::shared_ptr<Peer> peer = found->second;
  revoked.insert(generation);
  if (peer->redial_timer != 0) env.loop.Cancel(std::exchange(peer->redial_timer, 0));
  peers.erase(found);
  peer->driver->Detach(grpc::Status(grpc::StatusCode::ABORTED, "the worker counts as lost"));
  // Perhaps one of its own calls is on the stack.
  env.loop.Post([peer] {});
}

void ControlServer::State::Send(uint64_t generation, v1::ControlMessage message) {
  const auto found = peers.find(generation);
  if (found == peers.end()) return;
  absl::Status status = found->second->driver->Send(std::move(message));
  if (status.ok()) return;
  // Senders do not expect to be told of a death in the middle of a call.
  env.loop.Post([self = weak_from_this(), generation, status = std::move(status)] {
    if (const auto state = self.lock()) state->Down(generation, status);
  });
}

void ControlServer::State::Close() {
  if (std::exchange(closed, true)) return;
  mailbox->Close();
  const grpc::Status status(grpc::StatusCode::UNAVAILABLE, "the coordinator is going away");
  for (const auto& stream : greeting) stream->Close(status);
  greeting.clear();
  for (const auto& [generation, peer] : peers) {
    if (peer->redial_timer != 0) env.loop.Cancel(std::exchange(peer->redial_timer, 0));
    peer->driver->Detach(status);
  }
}

ControlServer::ControlServer(Env env, uint64_t term, std::string build_id, OnWorker on_worker)
    : state_(std::make_shared<State>(env, term, std::move(build_id), std::move(on_worker))) {
  state_->service = std::make_unique<State::Service>(state_, state_->mailbox);
}

ControlServer::~ControlServer() { Close(); }

grpc::Service* ControlServer::service() { return state_->service.get(); }

void ControlServer::Close() { state_->Close(); }

}  // namespace epic::cluster
