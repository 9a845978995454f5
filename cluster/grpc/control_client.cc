#include "cluster/grpc/control_client.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/log.h"
#include "cluster/grpc/control_stream.h"
#include "cluster/grpc/session_driver.h"
#include "cluster/mailbox.h"
#include "cluster/version.h"

namespace epic::cluster {
namespace {

class ClientStream;

// Where finished streams wait to be destroyed. The last channel of a process must not go in a
// thread of gRPC's: it would wait for itself to end.
class Graveyard {
 public:
  void Begin() {
    const absl::MutexLock lock(&mutex_);
    ++open_;
  }
  // The stream's last event; from any thread.
  void End(std::shared_ptr<ClientStream> stream) {
    const absl::MutexLock lock(&mutex_);
    dead_.push_back(std::move(stream));
    --open_;
  }
  // Destroys those that have ended.
  void Clear() {
    // Declared before the lock, so that the streams are destroyed after the lock is released.
    std::vector<std::shared_ptr<ClientStream>> dead;
    const absl::MutexLock lock(&mutex_);
    dead.swap(dead_);
  }
  // Also waits for the others, all of them closed.
  void ClearAll() {
    std::vector<std::shared_ptr<ClientStream>> dead;
    const absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](int* open) { return *open == 0; }, &open_));
    dead.swap(dead_);
  }

 private:
  absl::Mutex mutex_;
  int open_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::shared_ptr<ClientStream>> dead_ ABSL_GUARDED_BY(mutex_);
};

class ClientStream
    : public ReactorStream<grpc::ClientBidiReactor<v1::ControlFrame, v1::ControlFrame>> {
 public:
  ClientStream(std::shared_ptr<Mailbox> mailbox, std::shared_ptr<Graveyard> graveyard)
      : ReactorStream(std::move(mailbox)), graveyard_(std::move(graveyard)) {
    graveyard_->Begin();
  }

  static std::shared_ptr<ClientStream> Dial(std::shared_ptr<Mailbox> mailbox,
                                            std::shared_ptr<Graveyard> graveyard,
                                            const std::string& address) {
    auto stream = std::make_shared<ClientStream>(std::move(mailbox), std::move(graveyard));
    grpc::ChannelArguments arguments;
    // Each dial has a connection of its own. With a shared one, gRPC's own pause after failures,
    // which grows to minutes, would hold back the dials of this class.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
    // A proxy that the environment names is meant for the web, and would end streams that live for
    // days.
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    // A map of all experts of a large model may be longer than gRPC's 4 MiB.
    arguments.SetMaxReceiveMessageSize(-1);
    stream->stub_ = v1::WorkerControl::NewStub(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
    stream->self_ = stream;
    stream->stub_->async()->Connect(&stream->context_, stream.get());
    // gRPC wants a hold where calls are started from outside of its own reactions, as the loop
    // does. It ends in Release.
    stream->AddHold();
    return stream;
  }

  void Begin(v1::ControlFrame hello) {
    Write(std::move(hello));
    StartRead(&read_);
    StartCall();
  }

  void OnDone(const grpc::Status& status) override {
    // Not this object's: the loop may destroy it as soon as it lies there.
    const auto graveyard = graveyard_;
    ToLoop([this, status] {
      if (events_.on_closed) events_.on_closed(status);
    });
    graveyard->End(std::static_pointer_cast<ClientStream>(std::exchange(self_, nullptr)));
  }

 protected:
  void End(const grpc::Status&) override { Release(); }
  void Orphaned() override { Release(); }
  // The status comes with OnDone.
  void Lost(grpc::Status) override { Release(); }

 private:
  void Release() {
    // The loop and a thread of gRPC's (Orphaned) may both come here, and a hold ends once.
    context_.TryCancel();
    if (!released_.exchange(true)) RemoveHold();
  }

  const std::shared_ptr<Graveyard> graveyard_;
  grpc::ClientContext context_;
  std::unique_ptr<v1::WorkerControl::Stub> stub_;
  std::atomic<bool> released_ = false;
};

class DialledLink : public ControlLink {
 public:
  DialledLink(Env env, std::string address, v1::ControlHello hello, ControlLinkHandlers handlers,
              std::optional<JoinToken> token)
      : env_(env),
        address_(std::move(address)),
        hello_(std::move(hello)),
        token_(std::move(token)),
        handlers_(std::move(handlers)),
        mailbox_(std::make_shared<Mailbox>(env.loop)),
        driver_([this](const v1::ControlMessage& message) { handlers_.on_message(message); },
                [this](const grpc::Status& status) { OnBroken(status); }) {
    hello_.set_protocol_version(kProtocolVersion);
    Dial();
  }

  ~DialledLink() override {
    if (timer_ != 0) env_.loop.Cancel(timer_);
    // The mailbox is closed first, so that no event of a stream is posted for an object that is
    // gone. ClearAll then waits until gRPC has let go of all streams.
    mailbox_->Close();
    if (dialled_ != nullptr) dialled_->Close(grpc::Status::CANCELLED);
    dialled_.reset();
    driver_.Detach(grpc::Status::CANCELLED);
    graveyard_->ClearAll();
  }

  void Send(v1::ControlMessage message) override {
    if (down_) return;
    if (const absl::Status status = driver_.Send(std::move(message)); !status.ok()) Down(status);
  }

 private:
  void Dial() {
    timer_ = 0;
    graveyard_->Clear();
    dialled_ = ClientStream::Dial(mailbox_, graveyard_, address_);
    dialled_->SetEvents({.on_frame = [this](const v1::ControlFrame& frame) { OnHello(frame); },
                         .on_written = [this] { OnHelloWritten(); },
                         .on_closed = [this](const grpc::Status& status) { OnBroken(status); }});
    hello_written_ = false;
    proof_.reset();
    // A nonce for each dial: a proof that was overheard fits no later one.
    if (token_) {
      hello_.clear_nonce();
      while (hello_.nonce().size() < JoinToken::kNonceBytes) {
        const uint64_t bits = env_.random.Next();
        hello_.mutable_nonce()->append(reinterpret_cast<const char*>(&bits), sizeof bits);
      }
    }
    v1::ControlFrame frame;
    *frame.mutable_hello() = hello_;
    // The coordinator sends again what comes after this number (protocol.md 8.1).
    frame.set_acknowledged(driver_.received());
    dialled_->Begin(std::move(frame));
  }

  void OnHello(const v1::ControlFrame& frame) {
    if (!frame.has_hello() || proof_) {
      return OnBroken(grpc::Status(grpc::StatusCode::DATA_LOSS, "no hello"));
    }
    if (!token_) return Attach(frame, /*write_busy=*/!hello_written_);
    const JoinFacts facts{.worker_nonce = hello_.nonce(),
                          .coordinator_nonce = frame.hello().nonce(),
                          .term = frame.hello().term(),
                          .generation = hello_.generation(),
                          .profile = hello_.worker().profile(),
                          .build_id = hello_.build_id()};
    // No second dial could change this, so the worker ends and says why.
    if (!token_->Verify(JoinSide::kCoordinator, facts, frame.hello().proof())) {
      return OnBroken(grpc::Status(grpc::StatusCode::FAILED_PRECONDITION,
                                   "the coordinator has no join token, or another one"));
    }
    proof_.emplace();
    proof_->mutable_hello()->set_proof(token_->Prove(JoinSide::kWorker, facts));
    answer_ = frame;
    // gRPC takes one write at a time, so the proof may have to wait for the hello.
    if (hello_written_) SendProof();
  }

  void OnHelloWritten() {
    hello_written_ = true;
    if (proof_) SendProof();
  }

  void SendProof() {
    dialled_->Write(*std::move(proof_));
    proof_.reset();
    Attach(answer_, /*write_busy=*/true);
  }

  void Attach(const v1::ControlFrame& answer, bool write_busy) {
    // From now on each redial names this term, so another life of the coordinator answers ABORTED
    // and the worker joins as a new generation.
    hello_.set_term(answer.hello().term());
    delay_ = kDelayMin;
    if (std::exchange(said_lost_, false)) LOG_INFO("connected to the coordinator again");
    const absl::Status status =
        driver_.Attach(std::exchange(dialled_, nullptr), answer.acknowledged(), write_busy);
    if (!status.ok()) Down(status);
  }

  void OnBroken(const grpc::Status& status) {
    if (dialled_ != nullptr) std::exchange(dialled_, nullptr)->Close(grpc::Status::CANCELLED);
    if (down_) return;
    if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) {
      return Down(absl::FailedPreconditionError(status.error_message()));
    }
    if (status.error_code() == grpc::StatusCode::ABORTED) {
      return Down(absl::AbortedError(status.error_message()));
    }
    if (!std::exchange(said_lost_, true)) {
      LOG_WARNING("no connection to the coordinator at {}: {}; dialling again", address_,
                  status.error_message());
    }
    // Jittered, since all workers of a world lose a coordinator at the same moment.
    const absl::Duration jitter =
        (delay_ / 2) * (static_cast<double>(env_.random.Next() >> 11) / (uint64_t{1} << 53));
    timer_ = env_.loop.At(env_.clock.Now() + std::max(kDelayMin, delay_ / 2 + jitter),
                          [this] { Dial(); });
    delay_ = std::min(delay_ * 2, kDelayMax);
  }

  void Down(absl::Status status) {
    if (std::exchange(down_, true)) return;
    driver_.Detach(grpc::Status::CANCELLED);
    // Called once, and as the last thing: the handler may destroy this link.
    const auto on_down = std::exchange(handlers_.on_down, nullptr);
    if (on_down) on_down(std::move(status));
  }

  static constexpr absl::Duration kDelayMin = absl::Milliseconds(50);
  static constexpr absl::Duration kDelayMax = absl::Milliseconds(500);

  Env env_;
  const std::string address_;
  v1::ControlHello hello_;
  const std::optional<JoinToken> token_;
  ControlLinkHandlers handlers_;
  const std::shared_ptr<Mailbox> mailbox_;
  const std::shared_ptr<Graveyard> graveyard_ = std::make_shared<Graveyard>();
  SessionDriver driver_;
  std::shared_ptr<ClientStream> dialled_;  // until its hello came
  bool hello_written_ = false;
  std::optional<v1::ControlFrame> proof_;  // to be written after the hello
  v1::ControlFrame answer_;                // to which it is the answer
  bool said_lost_ = false;
  bool down_ = false;
  absl::Duration delay_ = kDelayMin;
  TimerId timer_ = 0;
};

}  // namespace

std::unique_ptr<ControlLink> DialControl(Env env, const std::string& address,
                                         v1::ControlHello hello, ControlLinkHandlers handlers,
                                         std::optional<JoinToken> token) {
  return std::make_unique<DialledLink>(env, address, std::move(hello), std::move(handlers),
                                       std::move(token));
}

}  // namespace epic::cluster
