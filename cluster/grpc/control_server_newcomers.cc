// ControlServer: streams until they belong to a session.
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "cluster/grpc/control_server_sessions.h"
#include "cluster/version.h"

namespace epic::cluster {
namespace {

// How long a stranger may take to say who it is.
constexpr absl::Duration kGreetingTime = absl::Seconds(5);

}  // namespace

void ControlServer::Sessions::Accept(std::shared_ptr<ControlStream> stream) {
  if (closed) return stream->Close(grpc::Status(grpc::StatusCode::UNAVAILABLE, "going away"));
  // Events hold the stream weakly: the stream holds its events, and would keep itself alive.
  const std::weak_ptr<ControlStream> weak = stream;
  Newcomer& newcomer = newcomers[stream];
  newcomer.timer = env.loop.At(env.clock.Now() + kGreetingTime, [this, weak] {
    const auto alive = weak.lock();
    if (alive == nullptr) return;
    EndGreeting(alive);
    alive->Close(grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "no whole hello came"));
  });
  stream->SetEvents({.on_frame =
                         [this, weak](const v1::ControlFrame& frame) {
                           if (const auto alive = weak.lock()) OnHello(alive, frame);
                         },
                     .on_written =
                         [this, weak] {
                           const auto at = newcomers.find(weak.lock());
                           if (at != newcomers.end()) at->second.written = true;
                         },
                     .on_closed =
                         [this, weak](const grpc::Status&) {
                           const auto alive = weak.lock();
                           if (alive == nullptr) return;
                           EndGreeting(alive);
                           alive->Close(grpc::Status::CANCELLED);
                         }});
}

void ControlServer::Sessions::OnHello(const std::shared_ptr<ControlStream>& stream,
                                      const v1::ControlFrame& frame) {
  const auto at = newcomers.find(stream);
  if (at == newcomers.end()) return;
  Newcomer& newcomer = at->second;
  if (!newcomer.hello.has_hello()) {
    if (const grpc::Status status = Check(frame); !status.ok()) return Refuse(stream, status);
    newcomer.hello = frame;
    // With a token nothing is told to the owner before the proof: a stranger must cause no session.
    if (options.token) return AskForProof(stream, newcomer);
    return Admit(stream, v1::ControlFrame(frame), /*answered=*/false, /*write_busy=*/true);
  }
  const JoinFacts facts = Facts(newcomer.hello.hello(), newcomer.nonce);
  if (!options.token->Verify(JoinSide::kWorker, facts, frame.hello().proof())) {
    return Refuse(stream, {grpc::StatusCode::FAILED_PRECONDITION,
                           "the worker has another join token than the coordinator"});
  }
  // The hello is copied: Admit ends the greeting, and the newcomer goes with it.
  Admit(stream, v1::ControlFrame(newcomer.hello), /*answered=*/true,
        /*write_busy=*/!newcomer.written);
}

grpc::Status ControlServer::Sessions::Check(const v1::ControlFrame& frame) const {
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
  // A worker that names this term had a session here. Without one it counts as lost, and must come
  // as a new generation.
  const bool known = sessions.count(hello.generation()) > 0;
  if (revoked.count(hello.generation()) > 0 || (!known && hello.term() != 0)) {
    return {grpc::StatusCode::ABORTED, "this generation of the worker counts as lost"};
  }
  return grpc::Status::OK;
}

void ControlServer::Sessions::AskForProof(const std::shared_ptr<ControlStream>& stream,
                                       Newcomer& newcomer) {
  const v1::ControlHello& hello = newcomer.hello.hello();
  if (hello.nonce().size() != JoinToken::kNonceBytes) {
    return Refuse(stream, {grpc::StatusCode::FAILED_PRECONDITION,
                           "the coordinator wants a join token: give --join-token-file"});
  }
  // The coordinator proves itself first, so that a worker never proves anything to a stranger.
  newcomer.nonce = NewNonce();
  v1::ControlFrame answer = Answer(hello.generation());
  answer.mutable_hello()->set_nonce(newcomer.nonce);
  answer.mutable_hello()->set_proof(
      options.token->Prove(JoinSide::kCoordinator, Facts(hello, newcomer.nonce)));
  stream->Write(std::move(answer));
}

// What both proofs are over: a proof fits this join, of this worker, and no other.
JoinFacts ControlServer::Sessions::Facts(const v1::ControlHello& hello,
                                      const std::string& nonce) const {
  return {.worker_nonce = hello.nonce(),
          .coordinator_nonce = nonce,
          .term = options.term,
          .generation = hello.generation(),
          .profile = hello.worker().profile(),
          .build_id = hello.build_id()};
}

std::string ControlServer::Sessions::NewNonce() const {
  std::string nonce;
  while (nonce.size() < JoinToken::kNonceBytes) {
    const uint64_t bits = env.random.Next();
    nonce.append(reinterpret_cast<const char*>(&bits), sizeof bits);
  }
  return nonce;
}

void ControlServer::Sessions::Refuse(const std::shared_ptr<ControlStream>& stream,
                                  const grpc::Status& status) {
  LOG_WARNING("refused a worker: {}", status.error_message());
  EndGreeting(stream);
  stream->Close(status);
}

void ControlServer::Sessions::EndGreeting(const std::shared_ptr<ControlStream>& stream) {
  const auto at = newcomers.find(stream);
  if (at == newcomers.end()) return;
  env.loop.Cancel(at->second.timer);
  newcomers.erase(at);
}

}  // namespace epic::cluster
