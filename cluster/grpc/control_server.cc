#include "cluster/grpc/control_server.h"

#include <atomic>
#include <string>
#include <utility>

#include "base/check.h"
#include "cluster/grpc/control_server_sessions.h"
#include "cluster/version.h"

namespace epic::cluster {
namespace {

// A timer that runs later than this tells of this process, not of workers.
constexpr absl::Duration kLagMax = absl::Milliseconds(100);

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
  // The loop may close the stream while the closed mailbox ends it from a thread of gRPC's.
  void FinishOnce(const grpc::Status& status) {
    if (!finished_.exchange(true)) this->Finish(status);
  }
  std::atomic<bool> finished_ = false;
};

}  // namespace

class ControlServer::Sessions::Service : public v1::WorkerControl::CallbackService {
 public:
  Service(std::weak_ptr<Sessions> sessions, std::shared_ptr<Mailbox> mailbox)
      : sessions_(std::move(sessions)), mailbox_(std::move(mailbox)) {}

  grpc::ServerBidiReactor<v1::ControlFrame, v1::ControlFrame>* Connect(
      grpc::CallbackServerContext*) override {
    auto stream = std::make_shared<ServerStream>(mailbox_);
    // Before the first read, so that its hello finds the events.
    mailbox_->Post([sessions = sessions_, stream] {
      if (const auto alive = sessions.lock()) alive->Accept(stream);
    });
    stream->Begin(stream);
    return stream.get();
  }

 private:
  const std::weak_ptr<Sessions> sessions_;
  const std::shared_ptr<Mailbox> mailbox_;
};

ControlServer::Sessions::Sessions(Env e, Options o, OnWorker w)
    : env(e),
      options(std::move(o)),
      on_worker(std::move(w)),
      mailbox(std::make_shared<Mailbox>(e.loop)) {
  CHECK(on_worker) << "nobody takes the workers";
}

ControlServer::Sessions::~Sessions() = default;

// Tells the worker how far its messages came, so that it sends the rest again and nothing twice.
v1::ControlFrame ControlServer::Sessions::Answer(uint64_t generation) const {
  v1::ControlFrame answer;
  answer.mutable_hello()->set_protocol_version(kProtocolVersion);
  answer.mutable_hello()->set_term(options.term);
  answer.mutable_hello()->set_build_id(options.build_id);
  const auto found = sessions.find(generation);
  if (found != sessions.end()) answer.set_acknowledged(found->second->driver->received());
  return answer;
}

void ControlServer::Sessions::Admit(const std::shared_ptr<ControlStream>& stream,
                                    const v1::ControlFrame& hello, bool answered,
                                    bool write_busy) {
  // Again: another stream of the same generation may have been first.
  if (const grpc::Status status = Check(hello); !status.ok()) return Refuse(stream, status);
  const uint64_t generation = hello.hello().generation();
  if (sessions.count(generation) == 0) {
    if (const absl::Status status = AddSession(hello.hello()); !status.ok()) {
      return Refuse(stream, {grpc::StatusCode::FAILED_PRECONDITION, std::string(status.message())});
    }
  }
  EndGreeting(stream);
  // The owner may have dropped the link from within on_worker: then the session is gone again.
  const auto found = sessions.find(generation);
  if (found == sessions.end()) {
    return stream->Close(grpc::Status(grpc::StatusCode::ABORTED, "the worker counts as lost"));
  }
  const std::shared_ptr<Session> session = found->second;
  if (session->redial_timer != 0) env.loop.Cancel(std::exchange(session->redial_timer, 0));
  if (!answered) stream->Write(Answer(generation));
  const absl::Status status = session->driver->Attach(stream, hello.acknowledged(), write_busy);
  if (status.ok()) return;
  stream->Close(grpc::Status(grpc::StatusCode::ABORTED, std::string(status.message())));
  Down(generation, status);
}

absl::Status ControlServer::Sessions::AddSession(const v1::ControlHello& hello) {
  const uint64_t generation = hello.generation();
  auto session = std::make_shared<Session>();
  session->driver = std::make_unique<SessionDriver>(
      [this, generation](const v1::ControlMessage& message) {
        const auto found = sessions.find(generation);
        if (found == sessions.end() || !found->second->handlers.on_message) return;
        const std::shared_ptr<Session> alive = found->second;
        alive->handlers.on_message(message);
      },
      [this, generation](const grpc::Status&) { OnBroken(generation); });
  // Before its owner is asked, which may send at once.
  CHECK(sessions.emplace(generation, session).second) << "a session for generation " << generation;
  auto handlers = on_worker(hello, std::make_unique<Link>(weak_from_this(), generation));
  if (!handlers.ok()) {
    Forget(generation);
    return handlers.status();
  }
  session->handlers = *std::move(handlers);
  return absl::OkStatus();
}

void ControlServer::Sessions::OnBroken(uint64_t generation) {
  // One timer at a time: a stream may break while the time for a redial runs already.
  const auto found = sessions.find(generation);
  if (closed || found == sessions.end() || found->second->redial_timer != 0) return;
  const absl::Time due = env.clock.Now() + kRedialTime;
  found->second->redial_timer = env.loop.At(due, [this, generation, due] {
    const auto session = sessions.find(generation);
    if (session == sessions.end()) return;
    session->second->redial_timer = 0;
    // This process had stopped itself, and a redial may be among what is queued.
    if (env.clock.Now() - due > kLagMax) return OnBroken(generation);
    Down(generation, absl::UnavailableError("its connection ended and was not dialled again"));
  });
}

// Forgotten first: what the owner does in on_down finds no session any more.
void ControlServer::Sessions::Down(uint64_t generation, absl::Status status) {
  const auto found = sessions.find(generation);
  if (found == sessions.end()) return;
  const std::shared_ptr<Session> session = found->second;
  Forget(generation);
  if (session->handlers.on_down) session->handlers.on_down(std::move(status));
}

void ControlServer::Sessions::Forget(uint64_t generation) {
  const auto found = sessions.find(generation);
  if (found == sessions.end()) return;
  const std::shared_ptr<Session> session = found->second;
  // For good. Its owner was told of its end, so a redial must not bring it back.
  revoked.insert(generation);
  if (session->redial_timer != 0) env.loop.Cancel(std::exchange(session->redial_timer, 0));
  sessions.erase(found);
  session->driver->Detach(grpc::Status(grpc::StatusCode::ABORTED, "the worker counts as lost"));
  // Perhaps one of its own calls is on the stack.
  env.loop.Post([session] {});
}

void ControlServer::Sessions::Send(uint64_t generation, v1::ControlMessage message) {
  const auto found = sessions.find(generation);
  if (found == sessions.end()) return;
  absl::Status status = found->second->driver->Send(std::move(message));
  if (status.ok()) return;
  // Senders do not expect to be told of a death in the middle of a call.
  env.loop.Post([self = weak_from_this(), generation, status = std::move(status)] {
    if (const auto alive = self.lock()) alive->Down(generation, status);
  });
}

void ControlServer::Sessions::Close() {
  if (std::exchange(closed, true)) return;
  // From here on nothing new comes in from the threads of gRPC.
  mailbox->Close();
  const grpc::Status status(grpc::StatusCode::UNAVAILABLE, "the coordinator is going away");
  for (const auto& [stream, newcomer] : newcomers) {
    env.loop.Cancel(newcomer.timer);
    stream->Close(status);
  }
  newcomers.clear();
  for (const auto& [generation, session] : sessions) {
    if (session->redial_timer != 0) env.loop.Cancel(std::exchange(session->redial_timer, 0));
    session->driver->Detach(status);
  }
}

ControlServer::ControlServer(Env env, Options options, OnWorker on_worker)
    : sessions_(std::make_shared<Sessions>(env, std::move(options), std::move(on_worker))) {
  sessions_->service = std::make_unique<Sessions::Service>(sessions_, sessions_->mailbox);
}

ControlServer::~ControlServer() { Close(); }

grpc::Service* ControlServer::service() { return sessions_->service.get(); }

void ControlServer::Close() { sessions_->Close(); }

}  // namespace epic::cluster
