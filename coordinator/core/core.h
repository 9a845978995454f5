// Core: the one mind across ranks. It admits requests, sends each choice as a sequence to an
// attention rank, appends the tokens that come back to the request's journal, and ends every
// request once. When a worker is lost its sequences are submitted again, with what they have
// generated, to a rank that is ready: nothing is lost, and no token comes twice.
//
// Who is in the world and which experts each rank holds is World's to decide; the core carries it
// out.
//
//   Core core(env, {.names = {"tiny-r1"}, .vocab_size = 1024}, tokenizer);
//   ControlServer control(env, {.term = term, .build_id = build}, [&](const auto& hello, auto link)
//   {
//     return core.AddWorker(hello, std::move(link)); });
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/env.h"
#include "cluster/control_link.h"
#include "cluster/mailbox.h"
#include "coordinator/admission/admission.h"
#include "coordinator/core/deaths.h"
#include "coordinator/inference.h"
#include "coordinator/journal/journal.h"
#include "coordinator/operators.h"
#include "coordinator/world/event_log.h"
#include "coordinator/world/world.h"
#include "text/answer_parser.h"
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

// Inference's and Operators' methods, StartDraining, EndAll and metrics: any thread. The rest: the
// loop's. Listeners of streams are called on the loop's thread.
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

  // A worker has dialled; returns what happens on `link`, or why it is not taken.
  absl::StatusOr<cluster::ControlLinkHandlers> AddWorker(
      const v1::ControlHello& hello, std::unique_ptr<cluster::ControlLink> link);
  // Refuses new requests (Unavailable); those accepted go on.
  void StartDraining();
  // Nothing that another thread wants is done any more, but for what is posted to the loop already.
  void Close() { mailbox_->Close(); }
  // Ends every request with `status`.
  void EndAll(const absl::Status& status);
  int active_requests() const;
  MetricsSnapshot metrics() const;

  // Work queued and no step for so long: not ready.
  static constexpr absl::Duration kStepAgeMax = absl::Seconds(10);

 private:
  class Stream;
  struct Entry {
    Request request;
    std::shared_ptr<Journal> journal;
    std::vector<uint64_t> sequences;  // of each choice
    uint64_t seed = 0;
    TimerId timer = 0;
  };
  struct Sequence {
    uint64_t request = 0;
    int choice = 0;
    uint32_t attempt = 0;
    int rank = -1;  // none: waits for one
    int64_t uncomputed_tokens = 0;
    std::optional<text::AnswerParser> parser;  // none: no stop string can end it
    Deaths deaths;
  };
  struct Worker {
    std::unique_ptr<cluster::ControlLink> link;
    struct {
      int running = 0;
      int waiting = 0;
      int kv_pages_used = 0;
      int64_t number = 0;
      int64_t preemptions = 0;
    } step;  // the last that it reported
    std::set<uint64_t> sequences;
    absl::Time last_step_at;
  };

  // Runs `change` under the lock, then tells the streams of journals that have grown.
  template <class Change>
  void Locked(Change change);

  // All below: with the lock, on the loop's thread.
  void Begin(uint64_t request);
  void PlaceWaiting();
  bool Place(uint64_t sequence);
  void PlaceAt(int rank, uint64_t sequence);
  // A suspect runs alone; the rank for it, and those of its epoch, are kept free of others.
  void PlaceSuspect();
  // The sequence is no suspect any more, or runs no more.
  void EndIsolation(uint64_t sequence);
  void SendStart(uint64_t id, Sequence& sequence, Worker& worker);
  void Resubmit(uint64_t sequence);
  void OnMessage(int rank, const v1::ControlMessage& message);
  void OnReady(int rank);
  void OnStep(int rank, const v1::StepReport& report);
  void OnToken(int rank, const v1::SequenceToken& token);
  void OnPrompt(int rank, const v1::PromptScored& prompt);
  void OnFailed(int rank, const v1::SequenceFailed& failed);
  // Runs `change` of the world, does what the world then wants, and places what waits.
  template <class Change>
  void ChangeWorld(Change change);
  void Tick();
  void OnLost(const LostRanks& lost);
  // Of the rank and of those that would be lost with it.
  size_t CountTogether(int rank) const;
  void OnDeath(uint64_t sequence, int length, bool alone);
  // Its sequences go on elsewhere.
  void MoveAway(int rank);
  // On the loop; then tells the operator.
  void Operate(std::function<absl::Status()> change, Done done);
  void EndSequence(uint64_t sequence, FinishReason finish, absl::Status error);
  void EndRequest(uint64_t request, FinishReason finish, const absl::Status& error);
  // Why nothing can be served; OK: it can. With the lock, any thread.
  absl::Status Ready() const;
  // As Ready, and steps are being made.
  absl::Status Healthy() const;
  absl::Duration StepAge(const Worker& worker) const;
  RankStatus StatusOf(int rank, const Worker& worker) const;

  Env env_;
  const CoreOptions options_;
  const std::shared_ptr<const text::Tokenizer> tokenizer_;
  const std::shared_ptr<cluster::Mailbox> mailbox_;

  mutable std::mutex mutex_;  // guards all below
  Admission admission_;
  bool draining_ = false;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Entry> requests_;
  std::map<std::string, uint64_t> ids_;
  std::map<uint64_t, Sequence> sequences_;
  std::set<std::pair<int, uint64_t>> waiting_;  // (-priority, sequence)
  std::map<int, Worker> workers_;
  ModelInfo model_;
  EventLog events_;
  World world_;
  TimerId tick_ = 0;        // while there are workers
  uint64_t isolated_ = 0;   // the suspect that runs
  int isolated_rank_ = -1;  // where it runs, or will when the rank is empty
  MetricsSnapshot metrics_;
  std::map<uint64_t, std::shared_ptr<Journal>> grown_;  // by request
};

template <class Change>
void Core::ChangeWorld(Change change) {
  change();
  WorldActions actions = world_.Take();
  for (auto& [rank, message] : actions.messages) {
    const auto worker = workers_.find(rank);
    if (worker != workers_.end()) worker->second.link->Send(std::move(message));
  }
  for (const int rank : actions.move) MoveAway(rank);
  for (const LostRanks& lost : actions.lost) OnLost(lost);
  PlaceWaiting();
}

template <class Change>
void Core::Locked(Change change) {
  std::map<uint64_t, std::shared_ptr<Journal>> grown;
  {
    const std::lock_guard lock(mutex_);
    change();
    grown.swap(grown_);
  }
  for (const auto& [request, journal] : grown) journal->Notify();
}

}  // namespace epic::coordinator
