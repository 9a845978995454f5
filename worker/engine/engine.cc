#include "worker/engine/engine.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "model/sampler.h"
#include "model/vocabulary_passes.h"
#include "worker/engine/start_sequence.h"

namespace epic::worker {

// A row of logits of the step that has just ended, and the token that it gives.
struct Engine::Reading {
  const BatchSequence& entry;
  Sequence& sequence;
  int index;  // among the entry's logits
  v1::SequenceToken token;

  bool drawn() const { return index >= entry.scored_count; }
};

namespace {

constexpr int64_t kParallelLogits = 1 << 16;  // fewer are sampled before a thread has woken up

// Of the token and of the `count` most likely ones (equal ones by id); none if count < 0.
void AddLogprobs(std::span<const float> logits, int count, v1::SequenceToken& token) {
  if (count < 0) return;
  const float sum = model::LogSumExp(logits);
  token.set_logprob(logits[token.token()] - sum);
  if (count == 0) return;
  for (const int32_t id : model::LargestIds(logits, count)) {
    v1::TokenLogprob& top = *token.add_top();
    top.set_token_id(id);
    top.set_logprob(logits[id] - sum);
  }
}

v1::SequenceToken NewToken(const SequenceName& name, int position) {
  v1::SequenceToken token;
  token.set_sequence(name.sequence);
  token.set_attempt(name.attempt);
  token.set_position(position);
  return token;
}

// Why the sequence ends with `token`, which makes it `length` tokens long; NONE: it does not.
v1::FinishReason FinishReasonOf(const Sequence& sequence, int32_t token, int length) {
  const auto& stops = sequence.request.stop_token_ids();
  if (std::ranges::find(stops, token) != stops.end()) return v1::FINISH_REASON_STOP;
  return length >= sequence.length_max ? v1::FINISH_REASON_LENGTH : v1::FINISH_REASON_NONE;
}

}  // namespace

Engine::Engine(const EngineLimits& limits, TokenModel& model, PageLedger& pages)
    : limits_(limits), model_(model), pages_(pages), scheduler_(limits.scheduler, pages) {
  CHECK_GT(limits.max_model_len, 1);
}

absl::Status Engine::Start(v1::StartSequence start) {
  ASSIGN_OR_RETURN(Sequence sequence, NewSequence(std::move(start), {limits_.max_model_len,
                                                                     model_.vocab_size()}));
  return scheduler_.Add(std::move(sequence));
}

Engine::Progress Engine::Advance() {
  if (batch_ == nullptr) {
    const Batch& batch = scheduler_.Plan();
    if (batch.empty()) return Progress::kIdle;
    batch_ = &batch;  // unchanged until the next Plan, even where sequences of it end
    model_.Begin(batch.plan);
  }
  const auto progress = model_.Advance();
  if (progress.ok() && *progress == TokenModel::Progress::kRunning) return Progress::kRunning;
  if (progress.ok() && *progress == TokenModel::Progress::kWaiting) return Progress::kWaiting;
  // The step has ended, well or badly.
  result_ = {.rows = batch_->plan.rows()};
  ++steps_;
  if (progress.ok()) {
    FinishStep();
  } else {
    FailStep(progress.status());
  }
  batch_ = nullptr;
  return Progress::kStepDone;
}

// All of a step takes effect here, at its end: a step that fails, or whose sequences end while it
// runs, leaves nothing behind.
void Engine::FinishStep() {
  CHECK_EQ(batch_->plan.roles.size(), batch_->plan.token_ids.size());
  scheduler_.Commit();
  std::vector<Reading> readings;
  std::vector<std::pair<const BatchSequence*, size_t>> taken;  // and where its readings begin
  for (const BatchSequence& entry : batch_->sequences) {
    Sequence* sequence = Take(entry);
    if (sequence == nullptr) continue;
    taken.emplace_back(&entry, readings.size());
    for (int i = 0; i < entry.logit_count(); ++i) readings.push_back({entry, *sequence, i, {}});
  }
  Read(readings);
  for (const auto& [entry, begin] : taken) {
    Deliver(*entry, std::span(readings).subspan(begin, entry->logit_count()));
  }
}

// A failed step leaves no record to rely on, so none of its sequences can go on here. The
// coordinator tells which failures another rank may mend.
void Engine::FailStep(const absl::Status& status) {
  for (const BatchSequence& entry : batch_->sequences) {
    if (scheduler_.Find(entry) != nullptr) Fail(entry.name, status);
  }
}

Sequence* Engine::Take(const BatchSequence& entry) {
  Sequence* sequence = scheduler_.Find(entry);
  if (sequence == nullptr) return nullptr;  // ended while the step ran
  CountRows(entry);
  // What follows from a NaN is void, and it would stay in the sequence's records for ever.
  if (Faulty(entry)) {
    Fail(entry.name, absl::InternalError("the model's numbers became NaN on this sequence"));
    return nullptr;
  }
  return sequence;
}

// By what the rows were computed for, whether their sequence goes on or not: the work was done.
void Engine::CountRows(const BatchSequence& entry) {
  const auto roles = std::span(batch_->plan.roles).subspan(entry.first_row, entry.row_count);
  prompt_rows_computed_ += std::ranges::count(roles, kernels::RowRole::kPrompt);
  replayed_rows_ += std::ranges::count(roles, kernels::RowRole::kForced);
}

// One faulty row is enough: the rows behind it attend to its record.
bool Engine::Faulty(const BatchSequence& entry) const {
  for (int row = entry.first_row; row < entry.first_row + entry.row_count; ++row) {
    if (model_.Fault(row)) return true;
  }
  return false;
}

// Rows of logits are independent until they are delivered, so they may be read on several threads.
void Engine::Read(std::vector<Reading>& readings) {
  const auto read = [&](int i) {
    Reading& reading = readings[i];
    reading.token = reading.drawn() ? Draw(reading) : Score(reading);
  };
  const auto count = static_cast<int>(readings.size());
  if (int64_t{count} * model_.vocab_size() >= kParallelLogits) {
    model_.ForEach(count, read);
  } else {
    for (int i = 0; i < count; ++i) read(i);
  }
}

v1::SequenceToken Engine::Score(const Reading& reading) const {
  const Sequence& sequence = reading.sequence;
  const int position = static_cast<int>(sequence.prompt_scores.size()) + 1 + reading.index;
  CHECK_LT(position, sequence.prompt_length);
  v1::SequenceToken score = NewToken(sequence.name, position);
  score.set_token(sequence.tokens[position]);
  AddLogprobs(model_.Logits(reading.entry.first_logit + reading.index),
              sequence.request.logprobs(), score);
  return score;
}

v1::SequenceToken Engine::Draw(const Reading& reading) const {
  const BatchSequence& entry = reading.entry;
  const Sequence& sequence = reading.sequence;
  const v1::StartSequence& request = sequence.request;
  // The row's token is the last that is known where this one is drawn.
  const int row = entry.row_count - entry.logit_count() + reading.index;
  const auto known = std::span(sequence.tokens).first(entry.first_position + row + 1);
  const auto prompt = known.first(sequence.prompt_length);
  const auto generated = known.subspan(sequence.prompt_length);
  const std::span<float> logits = model_.Logits(entry.first_logit + reading.index);
  // Log-probabilities are of the model's own logits; the sampler overwrites them.
  const std::vector<float> unprocessed = request.logprobs() >= 0
                                             ? std::vector<float>(logits.begin(), logits.end())
                                             : std::vector<float>();
  const int position = static_cast<int>(generated.size());
  // No stop token may be drawn before the answer is min_tokens long.
  if (position < request.min_tokens()) {
    for (const int32_t stop : request.stop_token_ids()) {
      logits[stop] = -std::numeric_limits<float>::infinity();
    }
  }
  v1::SequenceToken token = NewToken(sequence.name, position);
  token.set_token(model::SampleToken(logits, sequence.sampling, prompt, generated));
  AddLogprobs(unprocessed, request.logprobs(), token);
  return token;
}

void Engine::Deliver(const BatchSequence& entry, std::span<Reading> readings) {
  Sequence& sequence = *scheduler_.Find(entry);
  for (Reading& scored : readings.first(entry.scored_count)) {
    sequence.prompt_scores.push_back(std::move(scored.token));
  }
  // Ahead of the first token: with its scores the coordinator learns that the prompt is computed.
  ReportPrompt(entry, sequence);
  if (entry.drawn_count > 0) Accept(sequence, readings.subspan(entry.scored_count));
}

void Engine::ReportPrompt(const BatchSequence& entry, Sequence& sequence) {
  const int end = entry.first_position + entry.row_count;
  // After a preemption the prompt is computed again, but it is reported once.
  if (sequence.prompt_reported || end < sequence.prompt_length) return;
  sequence.prompt_reported = true;
  v1::PromptScored& prompt = result_.prompts.emplace_back();
  prompt.set_sequence(sequence.name.sequence);
  prompt.set_attempt(sequence.name.attempt);
  prompt.set_cached_tokens(sequence.cached_tokens);
  for (v1::SequenceToken& score : sequence.prompt_scores) {
    *prompt.add_prompt_logprobs() = std::move(score);
  }
  sequence.prompt_scores.clear();
}

void Engine::Accept(const Sequence& sequence, std::span<Reading> drawn) {
  const SequenceName name = sequence.name;
  std::vector<int32_t> tokens;
  v1::FinishReason finish = v1::FINISH_REASON_NONE;
  for (Reading& reading : drawn) {
    tokens.push_back(reading.token.token());
    CHECK_EQ(reading.token.position(), sequence.length() - sequence.prompt_length +
                                           static_cast<int>(tokens.size()) - 1);
    const int length = sequence.length() + static_cast<int>(tokens.size());
    finish = FinishReasonOf(sequence, tokens.back(), length);
    reading.token.set_finish_reason(finish);
    result_.tokens.push_back(std::move(reading.token));
    if (finish != v1::FINISH_REASON_NONE) break;  // what was drawn beyond the end is void
  }
  scheduler_.Accept(name, tokens);
  if (finish != v1::FINISH_REASON_NONE) End(name);
}

void Engine::Fail(const SequenceName& name, absl::Status status) {
  End(name);
  result_.failed.push_back({name, std::move(status)});
}

}  // namespace epic::worker
