// Scheduler: which rows the next step computes. A plain object: no time, threads or I/O; the same
// calls give the same batches.
//
//   scheduler.Add({.name = {1, 1}, .length_max = prompt.size() + max_tokens, .tokens = prompt});
//   const Batch& batch = scheduler.Plan();   // empty: nothing to do
//   … compute batch.plan …
//   scheduler.Commit();
//   scheduler.Accept({1, 1}, drawn);         // or Remove({1, 1})
//
// Continuous batching: sequences that owe the rows of new tokens alone (decode) go first, then
// chunks of the others (prompts, and tokens to compute again), then new ones. Order is by priority
// (lower values first), then by arrival. Pages are leased as rows need them. When pages run out the
// last in order steps back: its pages are freed and it waits at its place. It keeps its tokens; the
// records of these are later computed again, many at once. The first in order never steps back, so
// there is always one that finishes.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/step_plan.h"
#include "worker/kv/page_ledger.h"
#include "worker/scheduler/sequence.h"

namespace epic::worker {

struct SchedulerLimits {
  int max_num_batched_tokens = 2048;  // rows of a step
  int max_num_seqs = 256;             // sequences that hold pages at a time
  int max_logit_rows = 512;           // of a step; at least max_num_seqs
};

// A sequence's rows in a batch: plan.roles says what each is computed for.
struct BatchSequence {
  SequenceName name;
  PlaceInLine place;
  int32_t first_row = 0;  // of the plan
  int32_t row_count = 0;
  int32_t first_position = 0;
  int32_t first_logit = 0;   // of plan.logit_rows: scored_count of them, then drawn_count
  int32_t scored_count = 0;  // prompt rows whose logits are wanted
  int32_t drawn_count = 0;   // its last rows, whose logits give new tokens; 0 or 1

  int32_t logit_count() const { return scored_count + drawn_count; }
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

  // `sequence`: what was asked for, and its tokens. ResourceExhausted, naming the shortfall, if it
  // could not be finished even alone.
  absl::Status Add(Sequence sequence);
  // Frees what the sequence holds, also while a batch with it is being computed. Unknown names are
  // ignored.
  void Remove(const SequenceName& name);
  void Clear();

  // Chooses the next batch; it stays valid until the next Plan. Call Commit before that, or Remove
  // each sequence of the batch.
  const Batch& Plan();
  // The batch was computed: its rows are in the cache.
  void Commit();

  // The next tokens, at least one, of a sequence whose rows are all computed. They fit length_max.
  void Accept(const SequenceName& name, std::span<const int32_t> tokens);
  // Takes tokens back, down to `length` of them: their records are forgotten and the pages beyond
  // are freed. Not below the prompt, and not while a batch with the sequence is being computed. One
  // whose rows are then all computed needs an Accept before the next Plan.
  void Truncate(const SequenceName& name, int length);

  // Null: unknown. What it points to lives until the sequence is removed.
  const Sequence* Find(const SequenceName& name) const;
  // The sequence of the last batch; null: it was removed since, even if its name came again.
  Sequence* Find(const BatchSequence& entry);
  // The highest attempt of this sequence; 0: there is none.
  uint32_t AttemptOf(uint64_t sequence) const;

  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size()); }
  int64_t preemptions() const { return preemptions_; }

  // Internal, naming the sequence, unless each holds just the pages that its records need, and
  // nobody else holds any. Reads everything: for tests and idle moments.
  absl::Status CheckIntegrity() const;

 private:
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
  // Of those that wait.
  bool FirstMayEnter() const;
  Sequence& LetFirstIn();
  int RowsWithin(const Sequence& sequence, int rows) const;
  int LogitRows(const Sequence& sequence, int rows) const;
  void LeaseFor(Sequence& sequence);
  bool PreemptBehind(const PlaceInLine& place);
  void AppendRows(Sequence& sequence);

  SchedulerLimits limits_;
  PageLedger& pages_;
  std::map<SequenceName, Sequence> sequences_;
  // Of these, those that may hold pages, and those that hold none.
  std::map<PlaceInLine, Sequence*> running_;
  std::map<PlaceInLine, Sequence*> waiting_;
  uint64_t next_arrival_ = 0;
  int64_t preemptions_ = 0;

  int rows_left_ = 0;  // of the batch being chosen
  int logits_left_ = 0;
  std::vector<Sequence*> chosen_;
  Batch batch_;
};

}  // namespace epic::worker
