// Core: the one mind across ranks. It admits requests, sends each choice as a sequence to an
// attention rank, appends the tokens that come back to the request's journal, and ends every
// request once. When a worker is lost its sequences are submitted again, with what they have
// generated, to a rank that is ready: nothing is lost, and no token comes twice.
//
// The core is what connects plain objects, each with one job: RequestTable knows what runs,
// SequencePlacer which rank computes it, Isolation whom to suspect when ranks die, and World who is
// in the world and which experts each rank holds.
//
//   Core core(env, {.names = {"tiny-r1"}, .vocab_size = 1024}, tokenizer);
//   ControlServer control(env, {.term = term, .build_id = build}, [&](const auto& hello, auto link)
//   {
//     return core.AddWorker(hello, std::move(link)); });
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/env.h"
#include "cluster/control_link.h"
#include "cluster/mailbox.h"
#include "coordinator/core/cluster_status.h"
#include "coordinator/core/isolation.h"
#include "coordinator/core/request_table.h"
#include "coordinator/core/sequence_placer.h"
#include "coordinator/inference.h"
#include "coordinator/operators.h"
#include "coordinator/world/event_log.h"
#include "coordinator/world/world.h"
#include "text/tokenizer.h"

namespace epic::coordinator {

struct CoreOptions {
  std::vector<std::string> names;  // served names, the first is canonical
  int vocab_size = 0;
  AdmissionLimits admission;
  WorldOptions world;
};

// What the core counts, for /metrics.
struct MetricsSnapshot {
  int64_t replay_mismatches = 0;  // must stay 0
  int64_t resubmissions = 0;      // sequences sent to another rank, or again
  int64_t workers_lost = 0;
  int64_t quarantined = 0;  // requests that killed a rank alone, twice
};

// Any thread may call the methods of Inference and Operators, StartDraining, EndAll and metrics.
// The loop's thread alone calls the others, and the listeners of streams are called there.
class Core : public Inference, public Operators {
 public:
  // `tokenizer` reads stop strings; null: there are none.
  Core(Env env, CoreOptions options, std::shared_ptr<const text::Tokenizer> tokenizer);
  // On the loop's thread, or when the loop has ended. Streams may outlive the core.
  ~Core() override;

  absl::StatusOr<std::shared_ptr<RequestStream>> Submit(Request request) override;
  absl::Status Cancel(const std::string& request_id) override;
  ModelInfo model() const override;
  ClusterStatus status() const override;

  void Fence(int rank, Done done) override;
  void Freeze(bool frozen, Done done) override;
  void Drain(int rank, bool cancel, Done done) override;
  EventLog& events() override { return events_; }

  // A worker has dialled. Returns what is to be called for what comes over `link`, or why the
  // worker is not taken.
  absl::StatusOr<cluster::ControlLinkHandlers> AddWorker(
      const v1::ControlHello& hello, std::unique_ptr<cluster::ControlLink> link);
  // Refuses new requests (Unavailable); those accepted go on.
  void StartDraining();
  // Stops accepting posts from other threads. Tasks that are posted to the loop already still run,
  // so before the core goes the loop must have run them, or must never run again.
  void Close() { mailbox_->Close(); }
  // Ends every request with `status`.
  void EndAll(const absl::Status& status);
  int active_requests() const;
  MetricsSnapshot metrics() const;

  // A rank that has work and makes no step for longer than this makes the cluster not ready: a step
  // takes at most seconds, also on slow machines, and probes should see a rank that hangs.
  static constexpr absl::Duration kStepAgeMax = absl::Seconds(10);

 private:
  class Stream;
  class Change;
  struct Worker {
    std::unique_ptr<cluster::ControlLink> link;
    StepCounts step;
    absl::Time last_step_at;
  };

  // What begins on the loop's thread. Each of these takes the lock, once.
  void Begin(uint64_t request) ABSL_LOCKS_EXCLUDED(mutex_);
  void EndNow(uint64_t request, FinishReason finish, const absl::Status& error)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void EndAllNow(const absl::Status& error) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnMessage(int rank, const v1::ControlMessage& message) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnDown(int rank, const absl::Status& why) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnTick() ABSL_LOCKS_EXCLUDED(mutex_);
  // Posts a change of the world to the loop, and tells the operator what came of it.
  void Operate(std::function<absl::Status(World&)> change, Done done) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status ChangeWorld(const std::function<absl::Status(World&)>& change)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Sequences and the ranks that compute them (core.cc).
  void Enqueue(uint64_t sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PlaceWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PlaceSuspect() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Start(const SequencePlacement& placement) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The sequence leaves its rank, if it has one, and waits for another.
  void Resubmit(uint64_t sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndSequence(uint64_t sequence, FinishReason finish, absl::Status error)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndRequest(uint64_t request, FinishReason finish, const absl::Status& error)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Tells the rank to free what it holds of the sequence.
  void SendEnd(int rank, uint64_t sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int64_t TokensToCompute(uint64_t sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Sequences on the rank, and on those that would be lost with it.
  size_t CountTogether(int rank) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // What workers and the world say (core_workers.cc).
  void OnReady(int rank) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnStep(int rank, const v1::StepReport& report) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnToken(int rank, const v1::SequenceToken& token) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnPrompt(int rank, const v1::PromptScored& prompt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnFailed(int rank, const v1::SequenceFailed& failed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Does what the world wants after it was changed, and places what waits.
  void CarryOut(WorldActions actions) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnLost(const LostRanks& lost) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes the rank out of the core; returns the sequences that it had, which wait again.
  std::vector<uint64_t> RemoveWorker(int rank) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The rank of the sequence died, and nobody knows why. `alone`: no other one was lost with it.
  void OnDeath(uint64_t sequence, bool alone) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The sequences of the rank go on elsewhere, and the rank lives on.
  void MoveAway(int rank) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ScheduleTick() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Why nothing can be served; OK: it can.
  absl::Status Ready() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // As Ready, and steps are being made.
  absl::Status Healthy() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Duration StepAge(int rank, const Worker& worker) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Env env_;
  const CoreOptions options_;
  const std::shared_ptr<const text::Tokenizer> tokenizer_;
  const std::shared_ptr<cluster::Mailbox> mailbox_;
  EventLog events_;  // has locks of its own

  mutable absl::Mutex mutex_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  RequestTable requests_ ABSL_GUARDED_BY(mutex_);
  SequencePlacer placer_ ABSL_GUARDED_BY(mutex_);
  Isolation isolation_ ABSL_GUARDED_BY(mutex_);
  std::map<int, Worker> workers_ ABSL_GUARDED_BY(mutex_);
  ModelInfo model_ ABSL_GUARDED_BY(mutex_);
  World world_ ABSL_GUARDED_BY(mutex_);
  TimerId tick_ ABSL_GUARDED_BY(mutex_) = 0;  // while there are workers
  MetricsSnapshot metrics_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace epic::coordinator
