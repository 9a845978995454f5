// Inference: what the frontends (HTTP, gRPC) ask of the coordinator's core.
//
//   ASSIGN_OR_RETURN(auto stream, inference.Submit(std::move(request)));
//   stream->SetListener([=] { executor.Post([=] { Pull(stream); }); });
//
// All methods may be called from any thread, and none blocks on a worker.
#pragma once

#include <climits>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/request.h"

namespace epic::coordinator {

// What a cursor reads: journal tokens from a position on, and the end if there is one.
struct Slice {
  std::vector<JournalToken> tokens;
  // Set only if the slice has, or follows, the journal's last token.
  FinishReason finish = v1::FINISH_REASON_NONE;
  absl::Status error;                         // with FINISH_REASON_ERROR
};

// A client's view of a request's journal. A stream keeps its journal alive; destroying the last
// stream of an unfinished request cancels it (the client is gone).
class RequestStream {
 public:
  virtual ~RequestStream() = default;
  // Called after the journal has grown or ended, and once at once. Runs on the core's thread: hand
  // over, never work there. Replaces the listener before; empty: none.
  virtual void SetListener(std::function<void()> listener) = 0;
  // The tokens of `choice` from position `from` on, at most `count_max` of them. It costs by the
  // number of tokens that it returns: a reader that is slow asks for what it can take.
  virtual Slice Read(int choice, int from, int count_max) const = 0;
  // All tokens from position `from` on.
  Slice Read(int choice, int from) const { return Read(choice, from, INT_MAX); }
  // Tokens of the prompt that came from the prefix cache; 0 until known.
  virtual int cached_tokens() const = 0;
  // The log-probabilities of prompt tokens 1 .. n-1, if the request asked for them; empty until the
  // prompt is computed.
  virtual std::vector<JournalToken> prompt_logprobs() const = 0;
};

struct ModelInfo {
  std::vector<std::string> names;  // served names, the first is canonical
  int max_model_len = 0;           // 0 until a worker is ready
  int vocab_size = 0;
  std::string system_fingerprint;
  cluster::WeightsId weights = cluster::WeightsId::kFirst;
};

struct RankStatus {
  int rank = 0;
  uint64_t generation = 0;
  std::string state;  // loading, ready, draining, refused
  bool attention = false;
  bool experts = false;
  std::string host;
  std::string activity;  // as it said last
  std::string description;
  std::string profile;
  int64_t loaded_bytes = 0;
  int64_t total_bytes = 0;
  int running = 0;
  int waiting = 0;
  int kv_pages_used = 0;
  int kv_page_count = 0;
  int64_t steps = 0;
  int64_t preemptions = 0;
  int64_t prompt_tokens_computed = 0;  // those computed again count again
  absl::Duration step_time = absl::ZeroDuration();  // of all steps; waits for other ranks included
  absl::Duration last_step_age = absl::ZeroDuration();
  absl::Duration last_report_age = absl::ZeroDuration();
  int sequences = 0;  // given to it and not ended
  int experts_held = 0;
  int expert_slots = 0;
  // As the rank reports them.
  uint64_t map_number = 0;
  int outstanding_dispatches = 0;
  int64_t credits = 0;
  absl::Duration oldest_wait = absl::ZeroDuration();  // for another rank
  int64_t expert_rows_served = 0;
  int64_t replayed_rows = 0;
  int64_t stale_frames = 0;
  int64_t doorbell_rescues = 0;
  int64_t resident_bytes = 0;
  absl::Duration asleep_with_work = absl::ZeroDuration();
};

struct ClusterStatus {
  bool ready = false;
  std::string reason;  // why not
  // Choices of requests: those in the batch of a rank, computing their prompt or generating, and
  // those that wait for a rank, or for a place in its batch. More ranks help if some wait.
  int requests_running = 0;
  int requests_waiting = 0;
  // These are of the ranks that exchange rows, and 0 where a rank holds all experts itself.
  uint64_t map_number = 0;
  int64_t experts = 0;
  int64_t experts_unhosted = 0;
  int64_t experts_unreplicated = 0;  // that one rank alone holds
  bool frozen = false;
  std::vector<RankStatus> ranks;
};

class Inference {
 public:
  virtual ~Inference() = default;
  // ResourceExhausted: the queue is full (429). Unavailable: not ready or draining (503).
  virtual absl::StatusOr<std::shared_ptr<RequestStream>> Submit(Request request) = 0;
  // NotFound if no such request is running.
  virtual absl::Status Cancel(const std::string& request_id) = 0;
  virtual ModelInfo model() const = 0;
  virtual ClusterStatus status() const = 0;
};

}  // namespace epic::coordinator
