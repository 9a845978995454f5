#include "coordinator/service/cluster_service.h"

#include <grpcpp/grpcpp.h>

#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/metrics/rank_columns.h"
#include "proto/epic/v1/cluster.grpc.pb.h"

namespace epic::coordinator {
namespace {

v1::ClusterEvent EventFrom(const Event& event) {
  v1::ClusterEvent message;
  message.set_number(event.number);
  message.set_time(absl::ToDoubleSeconds(event.time - absl::UnixEpoch()));
  message.set_kind(std::string(NameOf(event.kind)));
  message.set_rank(event.rank);
  message.set_generation(event.generation);
  message.set_text(event.text);
  return message;
}

// One watcher: it writes an event whenever there is one and the last is written. It lives until
// gRPC is done with it.
class Watcher : public grpc::ServerWriteReactor<v1::ClusterEvent>,
                public std::enable_shared_from_this<Watcher> {
 public:
  Watcher(EventLog& events, uint64_t from)
      : events_(events), next_(from > 0 ? from : events.last() + 1) {}

  void Begin() {
    // Its own owner until gRPC says that it is done (OnDone).
    self_ = shared_from_this();
    listener_ = events_.AddListener([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->WriteNext();
    });
    WriteNext();
  }

  void OnWriteDone(bool ok) override {
    {
      const absl::MutexLock lock(&mutex_);
      writing_ = false;
    }
    ok ? WriteNext() : FinishOnce(grpc::Status::CANCELLED);
  }
  void OnCancel() override { FinishOnce(grpc::Status::CANCELLED); }
  void OnDone() override {
    events_.RemoveListener(listener_);
    self_.reset();
  }

 private:
  void WriteNext() {
    const absl::MutexLock lock(&mutex_);
    if (writing_ || finished_) return;
    // One at a time: a slow watcher holds one event, and the log holds the rest.
    const std::vector<Event> found = events_.Read(next_, 1);
    if (found.empty()) return;
    next_ = found[0].number + 1;
    event_ = EventFrom(found[0]);
    writing_ = true;
    StartWrite(&event_);
  }
  void FinishOnce(const grpc::Status& status) {
    {
      const absl::MutexLock lock(&mutex_);
      if (std::exchange(finished_, true)) return;
    }
    Finish(status);
  }

  EventLog& events_;
  EventLog::ListenerId listener_ = 0;
  std::shared_ptr<Watcher> self_;
  absl::Mutex mutex_;
  uint64_t next_ ABSL_GUARDED_BY(mutex_);
  v1::ClusterEvent event_;  // the one that is being written; nobody touches it then
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

class ClusterService : public v1::Cluster::CallbackService {
 public:
  ClusterService(const Inference& inference, Operators& operators, uint64_t term)
      : inference_(inference), operators_(operators), term_(term) {}

  grpc::ServerUnaryReactor* GetState(grpc::CallbackServerContext* context,
                                     const v1::GetStateRequest*,
                                     v1::ClusterState* answer) override {
    const ClusterStatus status = inference_.status();
    answer->set_term(term_);
    answer->set_ready(status.ready);
    answer->set_reason(status.reason);
    answer->set_map_number(status.map_number);
    answer->set_experts(static_cast<int32_t>(status.experts));
    answer->set_experts_unhosted(static_cast<int32_t>(status.experts_unhosted));
    answer->set_experts_unreplicated(static_cast<int32_t>(status.experts_unreplicated));
    answer->set_frozen(status.frozen);
    answer->set_requests_running(status.requests_running);
    answer->set_requests_waiting(status.requests_waiting);
    for (const RankStatus& rank : status.ranks) *answer->add_ranks() = RankStateFrom(rank);
    return Finished(context);
  }

  grpc::ServerUnaryReactor* ListEvents(grpc::CallbackServerContext* context,
                                       const v1::ListEventsRequest* request,
                                       v1::ListEventsResponse* answer) override {
    const size_t count_max = std::max(0, request->count_max());
    for (const Event& event : operators_.events().Read(request->from(), count_max)) {
      *answer->add_events() = EventFrom(event);
    }
    return Finished(context);
  }

  grpc::ServerWriteReactor<v1::ClusterEvent>* WatchEvents(
      grpc::CallbackServerContext*, const v1::WatchEventsRequest* request) override {
    auto watcher = std::make_shared<Watcher>(operators_.events(), request->from());
    watcher->Begin();
    return watcher.get();
  }

  grpc::ServerUnaryReactor* Fence(grpc::CallbackServerContext* context,
                                  const v1::FenceRequest* request, v1::FenceResponse*) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    operators_.Fence(request->rank(), WhenDone(reactor));
    return reactor;
  }

  grpc::ServerUnaryReactor* Freeze(grpc::CallbackServerContext* context,
                                   const v1::FreezeRequest* request, v1::FreezeResponse*) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    operators_.Freeze(request->frozen(), WhenDone(reactor));
    return reactor;
  }

  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request, v1::DrainResponse*) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    operators_.Drain(request->rank(), request->cancel(), WhenDone(reactor));
    return reactor;
  }

 private:
  static grpc::ServerUnaryReactor* Finished(grpc::CallbackServerContext* context) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  // The status codes of both are the same numbers.
  static Operators::Done WhenDone(grpc::ServerUnaryReactor* reactor) {
    return [reactor](const absl::Status& status) {
      reactor->Finish(grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                                   std::string(status.message())));
    };
  }

  const Inference& inference_;
  Operators& operators_;
  const uint64_t term_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewClusterService(const Inference& inference, Operators& operators,
                                                 uint64_t term) {
  return std::make_unique<ClusterService>(inference, operators, term);
}

}  // namespace epic::coordinator
