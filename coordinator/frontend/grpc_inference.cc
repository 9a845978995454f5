#include "coordinator/frontend/grpc_inference.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <deque>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/check.h"
#include "coordinator/frontend/api_key.h"
#include "coordinator/frontend/grpc_requests.h"
#include "coordinator/frontend/task_pool.h"
#include "proto/epic/v1/inference.grpc.pb.h"

namespace epic::coordinator {
namespace {

// Tokens turned into responses at once: bounds what waits for one client, as over HTTP.
constexpr int kTokensPerPull = 256;

grpc::Status ToGrpc(const absl::Status& status) {
  // absl took its codes from gRPC, so the numbers are the same.
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

absl::Status CheckKey(const FrontendContext& context, grpc::CallbackServerContext* call) {
  const auto found = call->client_metadata().find("authorization");
  const bool absent = found == call->client_metadata().end();
  return CheckApiKey(
      context.api_keys,
      absent ? std::string_view() : std::string_view(found->second.data(), found->second.size()));
}

// One Generate call. Responses are made when the one before is on the wire, so a slow client holds
// nothing but its place in the journal. Lives until gRPC is done with it and no task holds it.
class GenerateCall : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                     public std::enable_shared_from_this<GenerateCall> {
 public:
  // `pool` belongs to the service, which outlives its calls.
  GenerateCall(const FrontendContext& context, std::weak_ptr<TaskPool> pool)
      : context_(context), pool_(std::move(pool)) {}

  void Start(grpc::CallbackServerContext* call, const v1::GenerateRequest& message) {
    // gRPC has a bare pointer, so the call holds itself until OnDone, the last call that gRPC
    // makes.
    self_ = shared_from_this();
    absl::Status status = Submit(call, message);
    if (!status.ok()) return End(ToGrpc(status));
  }

  void OnWriteDone(bool ok) override {
    bool gone;
    {
      const absl::MutexLock lock(&mutex_);
      writing_ = false;
      // The client is gone. Dropping the generation cancels the request.
      if (!ok) generation_.reset();
      gone = generation_ == nullptr;
    }
    // The next response is made by the pool: a thread of gRPC's own must not be kept with text.
    gone ? End(grpc::Status::CANCELLED) : Wake(pool_, weak_from_this());
  }

  void OnCancel() override {
    {
      const absl::MutexLock lock(&mutex_);
      generation_.reset();
      // gRPC may not be told of an end while it writes: OnWriteDone does it.
      if (writing_) return;
    }
    End(grpc::Status::CANCELLED);
  }

  void OnDone() override { const std::shared_ptr<GenerateCall> self = std::move(self_); }

 private:
  // Only a task of the pool makes an owner of `weak`. If the core's thread did, the call could die
  // on that thread, and all that it holds with it.
  static void Wake(const std::weak_ptr<TaskPool>& pool, std::weak_ptr<GenerateCall> weak) {
    const std::shared_ptr<TaskPool> alive = pool.lock();
    if (alive == nullptr) return;
    alive->Post([weak = std::move(weak)] {
      if (const std::shared_ptr<GenerateCall> call = weak.lock()) call->Continue();
    });
  }

  absl::Status Submit(grpc::CallbackServerContext* call, const v1::GenerateRequest& message) {
    if (absl::Status status = CheckKey(context_, call); !status.ok()) return status;
    absl::StatusOr<Request> request = ReadGenerate(context_, message);
    if (!request.ok()) return request.status();
    const ModelInfo model = context_.inference.model();
    identity_ = {.request_id = request->id,
                 .system_fingerprint = model.system_fingerprint,
                 .weights = model.weights};
    std::vector<Request> requests;
    requests.push_back(*std::move(request));
    absl::StatusOr<std::unique_ptr<Generation>> generation =
        Generation::Start(context_, std::move(requests));
    if (!generation.ok()) return generation.status();
    const absl::MutexLock lock(&mutex_);
    CHECK(generation_ == nullptr) << " a call is submitted once";
    generation_ = *std::move(generation);
    // The listener must not hold the call: the call owns the generation, so neither would ever go.
    // The listener is called at once, and under this lock, which is no harm because it only posts.
    generation_->SetListener([weak = weak_from_this(), pool = pool_] { Wake(pool, weak); });
    return absl::OkStatus();
  }

  void Continue() {
    grpc::Status status;
    bool write = false;
    {
      const absl::MutexLock lock(&mutex_);
      if (writing_ || generation_ == nullptr) return;
      if (ready_.empty()) status = Pull();
      // The listener wakes the call again.
      if (status.ok() && ready_.empty() && !generation_->done()) return;
      if (status.ok() && !ready_.empty()) {
        writing_ = write = true;
        response_ = std::move(ready_.front());
        ready_.pop_front();
      } else {
        generation_.reset();
      }
    }
    // Both calls come without the lock, because what gRPC calls in answer takes it.
    write ? StartWrite(&response_) : End(status);
  }

  // Only called with nothing ready, so at most one pull of tokens waits for the client.
  grpc::Status Pull() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    CHECK(ready_.empty());
    absl::StatusOr<std::vector<Generation::Output>> outputs = generation_->Pull(kTokensPerPull);
    if (!outputs.ok()) return ToGrpc(outputs.status());
    for (v1::GenerateResponse& response : ToResponses(identity_, *generation_, *outputs)) {
      ready_.push_back(std::move(response));
    }
    return grpc::Status::OK;
  }

  // A cancel, a failed write and the last response may each end the call; gRPC allows one end.
  void End(const grpc::Status& status) {
    if (!ended_.exchange(true)) Finish(status);
  }

  const FrontendContext& context_;
  const std::weak_ptr<TaskPool> pool_;
  GrpcIdentity identity_;               // set before the listener is, and not changed any more
  std::shared_ptr<GenerateCall> self_;  // until OnDone
  std::atomic<bool> ended_ = false;
  absl::Mutex mutex_;
  std::unique_ptr<Generation> generation_ ABSL_GUARDED_BY(mutex_);  // null: the call ends
  std::deque<v1::GenerateResponse> ready_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  // gRPC reads it while writing_ is set; changed only under the lock while it is not.
  v1::GenerateResponse response_;
};

class GrpcInference : public v1::Inference::CallbackService {
 public:
  GrpcInference(const FrontendContext& context, Threads& threads, int thread_count)
      : context_(context), pool_(std::make_shared<TaskPool>(threads, "grpc", thread_count)) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* call, const v1::GenerateRequest* request) override {
    auto reactor = std::make_shared<GenerateCall>(context_, pool_);
    reactor->Start(call, *request);
    // Since Start the call holds itself, also if it has failed already, so the pointer stays valid.
    return reactor.get();
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* call,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return Answer(call, response, [&] { return coordinator::Tokenize(context_, *request); });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* call,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return Answer(call, response, [&] { return coordinator::Detokenize(context_, *request); });
  }

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* call,
                                       const v1::ListModelsRequest*,
                                       v1::ListModelsResponse* response) override {
    return Answer(call, response, [&]() -> absl::StatusOr<v1::ListModelsResponse> {
      return coordinator::ListModels(context_);
    });
  }

  grpc::ServerUnaryReactor* Cancel(grpc::CallbackServerContext* call,
                                   const v1::CancelRequest* request,
                                   v1::CancelResponse* response) override {
    return Answer(call, response, [&]() -> absl::StatusOr<v1::CancelResponse> {
      const absl::Status status = context_.inference.Cancel(request->request_id());
      if (!status.ok()) return status;
      return v1::CancelResponse();
    });
  }

 private:
  template <typename Response, typename Make>
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* call, Response* response,
                                   Make make) {
    // These calls are answered on gRPC's thread: none of them waits for a rank.
    grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
    absl::Status status = CheckKey(context_, call);
    if (status.ok()) {
      absl::StatusOr<Response> made = make();
      if (made.ok()) *response = *std::move(made);
      status = made.status();
    }
    reactor->Finish(ToGrpc(status));
    return reactor;
  }

  const FrontendContext& context_;
  // The service is the only owner. Calls and listeners borrow the pool, so its threads end here.
  const std::shared_ptr<TaskPool> pool_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewGrpcInference(const FrontendContext& context, Threads& threads,
                                                int thread_count) {
  return std::make_unique<GrpcInference>(context, threads, thread_count);
}

}  // namespace epic::coordinator
