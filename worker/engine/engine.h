// Engine: sequences in, tokens out. It plans a step (Scheduler), has it computed (TokenModel),
// samples, and commits, all at the step's end: until then nothing of a sequence changes but KV
// records past what is committed.
//
//   RETURN_IF_ERROR(engine.Start(start_sequence));
//   while (engine.busy()) {
//     if (engine.Advance() == Engine::Progress::kStepDone) Report(engine.TakeResult());
//   }
//
// A plain object, one thread. The token at position i depends on the request alone: on its tokens
// before i, its sampling settings, seed and choice, never on what runs beside it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "proto/epic/v1/worker.pb.h"
#include "worker/engine/token_model.h"
#include "worker/kv/page_ledger.h"
#include "worker/scheduler/scheduler.h"

namespace epic::worker {

struct FailedSequence {
  SequenceName name;
  absl::Status status;  // the sequence is gone
};

// What a step gave, in the order of the batch. A sequence whose token has a finish reason is gone.
struct StepResult {
  int rows = 0;
  std::vector<v1::SequenceToken> tokens;
  std::vector<v1::PromptScored> prompts;  // whose last row was computed
  std::vector<FailedSequence> failed;
};

struct EngineLimits {
  SchedulerLimits scheduler;
  int max_model_len = 0;  // prompt and generated tokens together
};

class Engine {
 public:
  enum class Progress { kIdle, kRunning, kWaiting, kStepDone };

  // `model` and `pages` outlive the engine.
  Engine(const EngineLimits& limits, TokenModel& model, PageLedger& pages);

  // InvalidArgument, OutOfRange or ResourceExhausted, naming field, value and limit, for a sequence
  // that cannot be computed; then nothing has changed. max_tokens beyond the context ends at the
  // context, with FINISH_REASON_LENGTH. No sequence of this name is here.
  absl::Status Start(v1::StartSequence start);
  // Frees what the sequence holds, also in the middle of a step. Unknown names are ignored.
  void End(const SequenceName& name) { scheduler_.Remove(name); }
  void EndAll() { scheduler_.Clear(); }
  // The highest attempt of the sequence that is here; 0: none.
  uint32_t AttemptOf(uint64_t sequence) const { return scheduler_.AttemptOf(sequence); }

  // Does a part of a step: see Progress. kWaiting: call again when another rank may have answered.
  Progress Advance();
  // Of the last step; valid from kStepDone to the next Advance.
  const StepResult& result() const { return result_; }
  StepResult TakeResult() { return std::move(result_); }

  // Whether Advance has something to do.
  bool busy() const { return batch_ != nullptr || sequence_count() > 0; }
  int sequence_count() const { return scheduler_.running() + scheduler_.waiting(); }
  const EngineLimits& limits() const { return limits_; }
  const Scheduler& scheduler() const { return scheduler_; }
  const PageLedger& pages() const { return pages_; }
  int64_t steps() const { return steps_; }
  int64_t prompt_rows_computed() const { return prompt_rows_computed_; }
  // Rows of generated tokens that were computed again, after a preemption or on another rank.
  int64_t replayed_rows() const { return replayed_rows_; }

 private:
  struct Reading;

  void FinishStep();
  void FailStep(const absl::Status& status);
  // The entry's sequence; null where it is gone, or is faulty and now gone.
  Sequence* Take(const BatchSequence& entry);
  void CountRows(const BatchSequence& entry);
  bool Faulty(const BatchSequence& entry) const;
  // Fills the readings' tokens from the logits; changes nothing else.
  void Read(std::vector<Reading>& readings);
  // What a scored row says of the prompt's next token.
  v1::SequenceToken Score(const Reading& reading) const;
  // The token that follows a drawn row; changes the row's logits.
  v1::SequenceToken Draw(const Reading& reading) const;
  // Gives a sequence of the batch what was read for it.
  void Deliver(const BatchSequence& entry, std::span<Reading> readings);
  void ReportPrompt(const BatchSequence& entry, Sequence& sequence);
  // Appends tokens to a sequence, up to the one that ends it.
  void Accept(const Sequence& sequence, std::span<Reading> drawn);
  void Fail(const SequenceName& name, absl::Status status);

  EngineLimits limits_;
  TokenModel& model_;
  PageLedger& pages_;
  Scheduler scheduler_;
  const Batch* batch_ = nullptr;  // being computed
  StepResult result_;
  int64_t steps_ = 0;
  int64_t prompt_rows_computed_ = 0;
  int64_t replayed_rows_ = 0;
};

}  // namespace epic::worker
