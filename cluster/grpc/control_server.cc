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

// For a stranger to say who it is.
constexpr absl::Duration kGreetingTime = absl::Seconds(5);
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

  // A stream without a session so far.
  struct Greeting {
    v1::ControlFrame hello;  // its first frame, checked; the proof of a token is awaited
    std::string nonce;
    bool written = false;  // the answer to it
    TimerId timer = 0;
  };

  State(Env e, Options o, OnWorker w)
      : env(e),
        options(std::move(o)),
        on_worker(std::move(w)),
        mailbox(std::make_shared<Mailbox>(e.loop)) {}

  void Accept(std::shared_ptr<ControlStream> stream);
  void OnGreeting(const std::shared_ptr<ControlStream>& stream, const v1::ControlFrame& frame);
  grpc::Status Check(const v1::ControlFrame& frame) const;
  void AskForProof(const std::shared_ptr<ControlStream>& stream, Greeting& greeting);
  JoinFacts Facts(const v1::ControlHello& hello, const std::string& nonce) const;
  void EndGreeting(const std::shared_ptr<ControlStream>& stream);
  void Refuse(const std::shared_ptr<ControlStream>& stream, const grpc::Status& status);
  v1::ControlFrame Answer(uint64_t generation) const;
  void Admit(const std::shared_ptr<ControlStream>& stream, const v1::ControlFrame& hello,
             bool answered, bool write_busy);
  absl::Status AddPeer(const v1::ControlHello& hello);
  std::string NewNonce() const;
  void OnBroken(uint64_t generation);
  void Down(uint64_t generation, absl::Status status);
  void Forget(uint64_t generation);
  void Send(uint64_t generation, v1::ControlMessage message);
  void Close();

  Env env;
  const Options options;
  OnWorker on_worker;
  const std::shared_ptr<Mailbox> mailbox;
  std::unique_ptr<Service> service;
  std::map<uint64_t, std::shared_ptr<Peer>> peers;
  std::set<uint64_t> revoked;  // generations that were down once
  std::map<std::shared_ptr<ControlStream>, Greeting> greetings;
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
  const std::weak_ptr<ControlStream> weak = stream;
  Greeting& greeting = greetings[stream];
  greeting.timer = env.loop.At(env.clock.Now() + kGreetingTime, [this, weak] {
    const auto alive = weak.lock();
    if (alive == nullptr) return;
    EndGreeting(alive);
    alive->Close(grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "no whole hello came"));
  });
  stream->SetEvents({.on_frame =
                         [this, weak](const v1::ControlFrame& frame) {
                           if (const auto alive = weak.lock()) OnGreeting(alive, frame);
                         },
                     .on_written =
                         [this, weak] {
                           const auto at = greetings.find(weak.lock());
                           if (at != greetings.end()) at->second.written = true;
                         },
                     .on_closed =
                         [this, weak](const grpc::Status&) {
                           const auto alive = weak.lock();
                           if (alive == nullptr) return;
                           EndGreeting(alive);
                           alive->Close(grpc::Status::CANCELLED);
                         }});
}

void ControlServer::State::EndGreeting(const std::shared_ptr<ControlStream>& stream) {
  const auto at = greetings.find(stream);
  if (at == greetings.end()) return;
  env.loop.Cancel(at->second.timer);
  greetings.erase(at);
}

void ControlServer::State::Refuse(const std::shared_ptr<ControlStream>& stream,
                                  const grpc::Status& status) {
  LOG_WARNING("refused a worker: {}", status.error_message());
  EndGreeting(stream);
  stream->Close(status);
}

std::string ControlServer::State::NewNonce() const {
  std::string nonce;
  while (nonce.size() < JoinToken::kNonceBytes) {
    const uint64_t bits = env.random.Next();
    nonce.append(reinterpret_cast<const char*>(&bits), sizeof bits);
  }
  return nonce;
}

grpc::Status ControlServer::State::Check(const v1::ControlFrame& frame) const {
  const v1::ControlHello& hello = frame.hello();
  if (!frame.has_hello())
    return {grpc::StatusCode::INVALID_ARGUMENT, "the first frame is no hello"};
  if (hello.protocol_version() != kProtocolVersion || hello.build_id() != options.build_id) {
    return {grpc::StatusCode::FAILED_PRECONDITION,
            absl::StrCat("the worker is build ", hello.build_id(), " with protocol ",
                         hello.protocol_version(), ", the coordinator build ", options.build_id,
                         " with protocol ", kProtocolVersion)};
  }
  if (hello.term() != 0 && hello.term() != options.term) {
    return {grpc::StatusCode::ABORTED, "another life of the coordinator"};
  }
  const bool known = peers.count(hello.generation()) > 0;
  if (revoked.count(hello.generation()) > 0 || (!known && hello.term() != 0)) {
    return {grpc::StatusCode::ABORTED, "this generation of the worker counts as lost"};
  }
  return grpc::Status::OK;
}

JoinFacts ControlServer::State::Facts(const v1::ControlHello& hello,
                                      const std::string& nonce) const {
  return {.worker_nonce = hello.nonce(),
          .coordinator_nonce = nonce,
          .term = options.term,
          .generation = hello.generation(),
          .profile = hello.worker().profile(),
          .build_id = hello.build_id()};
}

v1::ControlFrame ControlServer::State::Answer(uint64_t generation) const {
  v1::ControlFrame answer;
  answer.mutable_hello()->set_protocol_version(kProtocolVersion);
  answer.mutable_hello()->set_term(options.term);
  answer.mutable_hello()->set_build_id(options.build_id);
  const auto found = peers.find(generation);
  if (found != peers.end()) answer.set_acknowledged(found->second->driver->received());
  return answer;
}

void ControlServer::State::OnGreeting(const std::shared_ptr<ControlStream>& stream,
                                      const v1::ControlFrame& frame) {
  const auto at = greetings.find(stream);
  if (at == greetings.end()) return;
  Greeting& greeting = at->second;
  if (!greeting.hello.has_hello()) {
    if (const grpc::Status status = Check(frame); !status.ok()) return Refuse(stream, status);
    greeting.hello = frame;
    if (options.token) return AskForProof(stream, greeting);
    return Admit(stream, v1::ControlFrame(frame), /*answered=*/false, /*write_busy=*/true);
  }
  const JoinFacts facts = Facts(greeting.hello.hello(), greeting.nonce);
  if (!options.token->Verify(JoinSide::kWorker, facts, frame.hello().proof())) {
    return Refuse(stream, {grpc::StatusCode::FAILED_PRECONDITION,
                           "the worker has another join token than the coordinator"});
  }
  Admit(stream, v1::ControlFrame(greeting.hello), /*answered=*/true,
        /*write_busy=*/!greeting.written);
}

void ControlServer::State::AskForProof(const std::shared_ptr<ControlStream>& stream,
                                       Greeting& greeting) {
  const v1::ControlHello& hello = greeting.hello.hello();
  if (hello.nonce().size() != JoinToken::kNonceBytes) {
    return Refuse(stream, {grpc::StatusCode::FAILED_PRECONDITION,
                           "the coordinator wants a join token: give --join-token-file"});
  }
  greeting.nonce = NewNonce();
  v1::ControlFrame answer = Answer(hello.generation());
  answer.mutable_hello()->set_nonce(greeting.nonce);
  answer.mutable_hello()->set_proof(
      options.token->Prove(JoinSide::kCoordinator, Facts(hello, greeting.nonce)));
  stream->Write(std::move(answer));
}

void ControlServer::State::Admit(const std::shared_ptr<ControlStream>& stream,
                                 const v1::ControlFrame& hello, bool answered, bool write_busy) {
  // Again: another stream of the same generation may have been first.
  if (const grpc::Status status = Check(hello); !status.ok()) return Refuse(stream, status);
  const uint64_t generation = hello.hello().generation();
  if (peers.count(generation) == 0) {
    if (const absl::Status status = AddPeer(hello.hello()); !status.ok()) {
      return Refuse(stream, {grpc::StatusCode::FAILED_PRECONDITION, std::string(status.message())});
    }
  }
  EndGreeting(stream);
  const auto found = peers.find(generation);
  if (found == peers.end()) {
    return stream->Close(grpc::Status(grpc::StatusCode::ABORTED, "the worker counts as lost"));
  }
  const std::shared_ptr<Peer> peer = found->second;
  if (peer->redial_timer != 0) env.loop.Cancel(std::exchange(peer->redial_timer, 0));
  if (!answered) stream->Write(Answer(generation));
  const absl::Status status = peer->driver->Attach(stream, hello.acknowledged(), write_busy);
  if (status.ok()) return;
  stream->Close(grpc::Status(grpc::StatusCode::ABORTED, std::string(status.message())));
  Down(generation, status);
}

absl::Status ControlServer::State::AddPeer(const v1::ControlHello& hello) {
  const uint64_t generation = hello.generation();
  auto peer = std::make_shared<Peer>();
  peer->driver = std::make_unique<SessionDriver>(
      [this, generation](const v1::ControlMessage& message) {
        const auto found = peers.find(generation);
        if (found == peers.end() || !found->second->handlers.on_message) return;
        const std::shared_ptr<Peer> alive = found->second;
        alive->handlers.on_message(message);
      },
      [this, generation](const grpc::Status&) { OnBroken(generation); });
  peers[generation] = peer;
  auto handlers = on_worker(hello, std::make_unique<Link>(weak_from_this(), generation));
  if (!handlers.ok()) {
    Forget(generation);
    return handlers.status();
  }
  peer->handlers = *std::move(handlers);
  return absl::OkStatus();
}

void ControlServer::State::OnBroken(uint64_t generation) {
  const auto found = peers.find(generation);
  if (closed || found == peers.end() || found->second->redial_timer != 0) return;
  const absl::Time due = env.clock.Now() + kRedialTime;
  found->second->redial_timer = env.loop.At(due, [this, generation, due] {
    const auto peer = peers.find(generation);
    if (peer == peers.end()) return;
    peer->second->redial_timer = 0;
    // This process had stopped itself, and a redial may be among what is queued.
    if (env.clock.Now() - due > kLagMax) return OnBroken(generation);
    Down(generation, absl::UnavailableError("its connection ended and was not dialled again"));
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
  for (const auto& [stream, greeting] : greetings) {
    env.loop.Cancel(greeting.timer);
    stream->Close(status);
  }
  greetings.clear();
  for (const auto& [generation, peer] : peers) {
    if (peer->redial_timer != 0) env.loop.Cancel(std::exchange(peer->redial_timer, 0));
    peer->driver->Detach(status);
  }
}

ControlServer::ControlServer(Env env, Options options, OnWorker on_worker)
    : state_(std::make_shared<State>(env, std::move(options), std::move(on_worker))) {
  state_->service = std::make_unique<State::Service>(state_, state_->mailbox);
}

ControlServer::~ControlServer() { Close(); }

grpc::Service* ControlServer::service() { return state_->service.get(); }

void ControlServer::Close() { state_->Close(); }

}  // namespace epic::cluster
