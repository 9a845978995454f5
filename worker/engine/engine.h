// Engine: sequences in, tokens out. It plans a step (Scheduler), has it computed (TokenModel),
// samples, and commits, all at the step's end: until then nothing of a sequence changes but KV
// records past what is committed.
//
//   RETURN_IF_ERROR(engine.Start(std::move(request)));
//   while (engine.busy()) {
//     if (engine.Advance() == Engine::Progress::kStepDone) Report(engine.result());
//   }
//
// A plain object, one thread. The token at position i depends on the request alone: on its tokens
// before i, its sampling settings, seed and choice, never on what runs beside it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "model/sampler.h"
#include "proto/epic/v1/worker.pb.h"
#include "worker/engine/token_model.h"
#include "worker/kv/page_ledger.h"
#include "worker/scheduler/scheduler.h"

namespace epic::worker {

struct SequenceRequest {
  SequenceId id = 0;
  std::vector<int32_t> prompt;
  std::vector<int32_t> forced;  // generated before: computed, never sampled or reported again
  model::SamplingParams sampling;
  int max_tokens = 0;  // generated tokens, forced ones included
  int min_tokens = 0;  // no stop token before
  std::vector<int32_t> stop_token_ids;
  int logprobs = -1;  // alternatives for each token; -1: no log-probabilities
  bool prompt_logprobs = false;
  int priority = 0;  // lower goes first
};

struct NewToken {
  SequenceId id = 0;
  int position = 0;  // among the generated tokens, from 0; among the prompt's in PromptScores
  int32_t token = 0;
  float logprob = 0;  // of the unprocessed logits; 0 unless asked for
  std::vector<v1::TokenLogprob> top;  // most likely first
  v1::FinishReason finish = v1::FINISH_REASON_NONE;  // if set, the sequence is gone
};

// A prompt whose last row was computed.
struct PromptScores {
  SequenceId id = 0;
  std::vector<NewToken> tokens;  // prompt tokens 1 .. n-1, if asked for
};

struct FailedSequence {
  SequenceId id = 0;
  absl::Status status;  // the sequence is gone
};

// What a step gave, in the order of the batch.
struct StepResult {
  int rows = 0;
  std::vector<NewToken> tokens;
  std::vector<PromptScores> prompts;
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
  ~Engine();

  // InvalidArgument, OutOfRange or ResourceExhausted, naming field, value and limit, for a request
  // that cannot be computed; then nothing has changed. max_tokens beyond the context ends at the
  // context, with FINISH_REASON_LENGTH.
  absl::Status Start(SequenceRequest request);
  // Frees what the sequence holds, also in the middle of a step. Unknown ids are ignored.
  void End(SequenceId id);

  // Does a part of a step: see Progress. kWaiting: call again when another rank may have answered.
  Progress Advance();
  // Of the last step; valid from kStepDone to the next Advance.
  const StepResult& result() const { return result_; }

  // Whether Advance has something to do.
  bool busy() const { return batch_ != nullptr || !sequences_.empty(); }
  const EngineLimits& limits() const { return limits_; }
  const Scheduler& scheduler() const { return scheduler_; }
  const PageLedger& pages() const { return pages_; }
  int64_t steps() const { return steps_; }
  int64_t prompt_rows_computed() const { return prompt_rows_computed_; }
  // Rows of generated tokens that were computed again, after a preemption or on another rank.
  int64_t replayed_rows() const { return replayed_rows_; }

 private:
  struct Sequence;

  absl::Status Check(const SequenceRequest& request) const;
  absl::Status CheckTokens(const char* field, const std::vector<int32_t>& tokens) const;
  void FinishStep();
  void FailStep(const absl::Status& status);
  // The entry's sequence; null where it is gone, or is faulty and now gone.
  Sequence* Take(const BatchSequence& entry);
  bool Faulty(const BatchSequence& entry) const;
  // What row `index` of the entry's logits says of the prompt's next token.
  NewToken Score(const BatchSequence& entry, const Sequence& sequence, int index) const;
  void ReportPrompt(const BatchSequence& entry, Sequence& sequence);
  // The next token; changes the row's logits alone.
  NewToken Sample(const BatchSequence& entry, const Sequence& sequence) const;
  void Append(const Sequence& sequence, NewToken token);
  v1::FinishReason FinishOf(int32_t token, const Sequence& sequence) const;
  void Fail(SequenceId id, absl::Status status);

  EngineLimits limits_;
  TokenModel& model_;
  PageLedger& pages_;
  Scheduler scheduler_;
  std::map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  const Batch* batch_ = nullptr;  // being computed
  StepResult result_;
  int64_t steps_ = 0;
  int64_t prompt_rows_computed_ = 0;
  int64_t replayed_rows_ = 0;
};

}  // namespace epic::worker
