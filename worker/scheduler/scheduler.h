// Scheduler: which rows the next step computes. A plain object: no time, threads or I/O; the same
// calls give the same batches.
//
//   scheduler.Add({.id = 1, .tokens = prompt, .length_max = prompt.size() + max_tokens});
//   const Batch& batch = scheduler.Plan();   // empty: nothing to do
//   … compute batch.plan …
//   scheduler.Commit();
//   scheduler.Append(1, sampled);            // or Remove(1)
//
// Continuous batching: sequences with one row to compute (decode) go first, then chunks of the
// others (prompts, and tokens to compute again), then new ones. Order is by priority (lower value
// first), then by arrival. Pages are leased as rows need them. When they run out the last in order
// steps back: its pages are freed and it waits at its place, keeping its tokens, which are later
// computed again many at once. The first in order never steps back, so someone always finishes.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/step_plan.h"
#include "worker/kv/page_ledger.h"

namespace epic::worker {

using SequenceId = uint64_t;

struct SchedulerLimits {
  int max_num_batched_tokens = 2048;  // rows of a step
  int max_num_seqs = 256;             // sequences that hold pages at a time
  int max_logit_rows = 512;           // of a step; at least max_num_seqs
};

struct SequenceSpec {
  SequenceId id = 0;
  std::vector<int32_t> tokens;  // prompt and forced tokens; at least one
  int length_max = 0;           // of prompt and generated tokens together; > tokens.size()
  int prompt_length = 0;        // of `tokens`
  int scored_rows = 0;          // the logits of rows 0 .. scored_rows-1 are wanted too
  int priority = 0;
};

struct BatchSequence {
  SequenceId id = 0;
  int32_t first_row = 0;  // of the plan
  int32_t row_count = 0;
  int32_t first_position = 0;
  int32_t first_logit = 0;  // of plan.logit_rows
  int32_t logit_count = 0;
  bool samples = false;  // its last logit row gives a new token; the ones before are scored rows
};

struct Batch {
  kernels::StepPlan plan;
  std::vector<BatchSequence> sequences;

  bool empty() const { return sequences.empty(); }
};

class Scheduler {
 public:
  // `pages` outlives the scheduler.
  Scheduler(const SchedulerLimits& limits, PageLedger& pages);
  ~Scheduler();

  // ResourceExhausted, naming the shortfall, if the sequence could not be finished even alone.
  absl::Status Add(SequenceSpec spec);
  // Frees what the sequence holds, also while a batch with it is being computed. Unknown ids are
  // ignored.
  void Remove(SequenceId id);

  // Chooses the next batch; it stays valid until the next Plan. Call Commit before that.
  const Batch& Plan();
  // The batch was computed: its rows are in the cache.
  void Commit();
  // The next token of a sequence whose rows are all computed.
  void Append(SequenceId id, int32_t token);

  bool contains(SequenceId id) const { return sequences_.contains(id); }
  // Prompt, forced and generated tokens. The sequence must be known.
  std::span<const int32_t> tokens(SequenceId id) const;

  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size()); }
  int64_t preemptions() const { return preemptions_; }

 private:
  // Place in line: priority, then arrival.
  using Place = std::pair<int, uint64_t>;
  struct Sequence;
  struct Choice {
    Sequence* sequence;
    int rows;
  };

  // The parts of Plan, in order.
  void ChooseRunning(bool decode);
  void Admit();
  void LeasePages();
  void BuildPlan();

  void Choose(Sequence& sequence);
  bool MayAdmit(const Sequence& sequence) const;
  int RowsWithin(const Sequence& sequence, int rows) const;
  int LogitRows(const Sequence& sequence, int rows) const;
  bool PreemptBehind(const Place& place);
  void AppendRows(const Choice& choice);

  SchedulerLimits limits_;
  PageLedger& pages_;
  std::map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::map<Place, Sequence*> running_;
  std::map<Place, Sequence*> waiting_;
  uint64_t next_arrival_ = 0;
  int64_t preemptions_ = 0;

  int rows_left_ = 0;  // of the batch being chosen
  int logits_left_ = 0;
  std::vector<Choice> chosen_;
  Batch batch_;
};

}  // namespace epic::worker
