#include "worker/engine/engine.h"

#include <algorithm>
#include <limits>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "model/vocabulary_passes.h"

namespace epic::worker {

struct Engine::Sequence {
  SequenceRequest request;
  int length_max = 0;  // of prompt and generated tokens
  bool prompt_reported = false;
  std::vector<NewToken> prompt_scores;

  int prompt_length() const { return static_cast<int>(request.prompt.size()); }
};

namespace {

constexpr int64_t kParallelLogits = 1 << 16;  // fewer are sampled before a thread has woken up

// Of the token and of the `count` most likely ones (equal ones by id); none if count < 0.
void AddLogprobs(std::span<const float> logits, int count, NewToken& token) {
  if (count < 0) return;
  const float sum = model::LogSumExp(logits);
  token.logprob = logits[token.token] - sum;
  if (count == 0) return;
  for (const int32_t id : model::LargestIds(logits, count)) {
    v1::TokenLogprob& top = token.top.emplace_back();
    top.set_token_id(id);
    top.set_logprob(logits[id] - sum);
  }
}

}  // namespace

Engine::Engine(const EngineLimits& limits, TokenModel& model, PageLedger& pages)
    : limits_(limits), model_(model), pages_(pages), scheduler_(limits.scheduler, pages) {
  CHECK_GT(limits.max_model_len, 1);
}

Engine::~Engine() = default;

absl::Status Engine::Start(SequenceRequest request) {
  CHECK(!sequences_.contains(request.id)) << request.id;
  RETURN_IF_ERROR(Check(request));
  auto sequence = std::make_unique<Sequence>();
  const int prompt_length = static_cast<int>(request.prompt.size());
  SequenceSpec spec{.id = request.id,
                    .tokens = request.prompt,
                    .prompt_length = prompt_length,
                    .scored_rows = request.prompt_logprobs ? prompt_length - 1 : 0,
                    .priority = request.priority};
  spec.tokens.insert(spec.tokens.end(), request.forced.begin(), request.forced.end());
  spec.length_max = static_cast<int>(
      std::min<int64_t>(int64_t{prompt_length} + request.max_tokens, limits_.max_model_len));
  sequence->length_max = spec.length_max;
  RETURN_IF_ERROR(scheduler_.Add(std::move(spec)));
  sequence->request = std::move(request);
  const SequenceId id = sequence->request.id;
  sequences_.emplace(id, std::move(sequence));
  return absl::OkStatus();
}

absl::Status Engine::Check(const SequenceRequest& request) const {
  const auto invalid = [](auto... parts) {
    return absl::InvalidArgumentError(absl::StrCat(parts...));
  };
  if (request.prompt.empty()) return invalid("prompt is empty; at least 1 token is needed");
  RETURN_IF_ERROR(CheckTokens("prompt", request.prompt));
  RETURN_IF_ERROR(CheckTokens("forced", request.forced));
  RETURN_IF_ERROR(CheckTokens("stop_token_ids", request.stop_token_ids));
  const int64_t length = static_cast<int64_t>(request.prompt.size() + request.forced.size());
  if (length >= limits_.max_model_len) {
    return absl::OutOfRangeError(absl::StrCat(
        "prompt and forced tokens are ", length, " tokens; with max_model_len ",
        limits_.max_model_len, " at most ", limits_.max_model_len - 1, " leave one to generate"));
  }
  if (request.max_tokens <= static_cast<int64_t>(request.forced.size())) {
    return invalid("max_tokens is ", request.max_tokens, "; it must exceed the ",
                   request.forced.size(), " forced tokens");
  }
  if (request.min_tokens < 0 || request.min_tokens > request.max_tokens) {
    return invalid("min_tokens is ", request.min_tokens, "; it must be in 0 .. max_tokens ",
                   request.max_tokens);
  }
  if (request.logprobs < -1 || request.logprobs > model_.vocab_size()) {
    return invalid("logprobs is ", request.logprobs, "; it must be in -1 .. vocabulary ",
                   model_.vocab_size());
  }
  return model::CheckSampling(request.sampling);
}

absl::Status Engine::CheckTokens(const char* field, const std::vector<int32_t>& tokens) const {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= model_.vocab_size()) {
      return absl::InvalidArgumentError(absl::StrCat(field, "[", i, "] is token ", tokens[i],
                                                     "; the vocabulary is 0 .. ",
                                                     model_.vocab_size() - 1));
    }
  }
  return absl::OkStatus();
}

void Engine::End(SequenceId id) {
  scheduler_.Remove(id);
  sequences_.erase(id);
}

Engine::Progress Engine::Advance() {
  if (batch_ == nullptr) {
    const Batch& batch = scheduler_.Plan();
    if (batch.empty()) return Progress::kIdle;
    batch_ = &batch;
    model_.Begin(batch.plan);
  }
  const auto progress = model_.Advance();
  if (progress.ok() && *progress == TokenModel::Progress::kRunning) return Progress::kRunning;
  if (progress.ok() && *progress == TokenModel::Progress::kWaiting) return Progress::kWaiting;
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

void Engine::FinishStep() {
  scheduler_.Commit();
  struct Reading {  // of a row of logits
    const BatchSequence& entry;
    Sequence& sequence;
    int index;  // among the entry's
    NewToken token;
  };
  std::vector<Reading> readings;
  std::vector<std::pair<const BatchSequence*, Sequence*>> taken;
  for (const BatchSequence& entry : batch_->sequences) {
    Sequence* sequence = Take(entry);
    if (sequence == nullptr) continue;
    taken.emplace_back(&entry, sequence);
    for (int i = 0; i < entry.logit_count; ++i) readings.push_back({entry, *sequence, i, {}});
  }
  const auto read = [&](int i) {
    Reading& reading = readings[i];
    const bool drawn = reading.entry.samples && reading.index == reading.entry.logit_count - 1;
    reading.token = drawn ? Sample(reading.entry, reading.sequence)
                          : Score(reading.entry, reading.sequence, reading.index);
  };
  const auto count = static_cast<int>(readings.size());
  if (int64_t{count} * model_.vocab_size() >= kParallelLogits) {
    model_.ForEach(count, read);
  } else {
    for (int i = 0; i < count; ++i) read(i);
  }
  auto next = readings.begin();
  for (const auto& [entry, sequence] : taken) {
    const int scored = entry->logit_count - (entry->samples ? 1 : 0);
    for (int i = 0; i < scored; ++i) {
      sequence->prompt_scores.push_back(std::move((next++)->token));
    }
    ReportPrompt(*entry, *sequence);
    if (entry->samples) Append(*sequence, std::move((next++)->token));
  }
}

void Engine::FailStep(const absl::Status& status) {
  for (const BatchSequence& entry : batch_->sequences) {
    if (sequences_.contains(entry.id)) Fail(entry.id, status);
  }
}

Engine::Sequence* Engine::Take(const BatchSequence& entry) {
  const auto found = sequences_.find(entry.id);
  if (found == sequences_.end()) return nullptr;  // ended while the step ran
  Sequence& sequence = *found->second;
  const int prompt_rows = std::clamp(sequence.prompt_length() - entry.first_position, 0,
                                     static_cast<int>(entry.row_count));
  prompt_rows_computed_ += prompt_rows;
  const int generated_rows = static_cast<int>(entry.row_count) - prompt_rows;
  replayed_rows_ += std::max(0, generated_rows - (entry.samples ? 1 : 0));
  if (Faulty(entry)) {
    Fail(entry.id, absl::InternalError("the model's numbers became NaN on this sequence"));
    return nullptr;
  }
  return &sequence;
}

bool Engine::Faulty(const BatchSequence& entry) const {
  for (int row = entry.first_row; row < entry.first_row + entry.row_count; ++row) {
    if (model_.Fault(row)) return true;
  }
  return false;
}

NewToken Engine::Score(const BatchSequence& entry, const Sequence& sequence, int index) const {
  const int position = static_cast<int>(sequence.prompt_scores.size()) + 1 + index;
  NewToken score{.id = entry.id, .position = position, .token = sequence.request.prompt[position]};
  AddLogprobs(model_.Logits(entry.first_logit + index), sequence.request.logprobs, score);
  return score;
}

void Engine::ReportPrompt(const BatchSequence& entry, Sequence& sequence) {
  const int end = entry.first_position + entry.row_count;
  if (sequence.prompt_reported || end < sequence.prompt_length()) return;
  sequence.prompt_reported = true;
  result_.prompts.push_back({entry.id, std::move(sequence.prompt_scores)});
}

v1::FinishReason Engine::FinishOf(int32_t token, const Sequence& sequence) const {
  const std::vector<int32_t>& stops = sequence.request.stop_token_ids;
  if (std::ranges::find(stops, token) != stops.end()) return v1::FINISH_REASON_STOP;
  const size_t length = scheduler_.tokens(sequence.request.id).size();
  return static_cast<int>(length) >= sequence.length_max ? v1::FINISH_REASON_LENGTH
                                                         : v1::FINISH_REASON_NONE;
}

NewToken Engine::Sample(const BatchSequence& entry, const Sequence& sequence) const {
  const SequenceRequest& request = sequence.request;
  const std::span<float> logits = model_.Logits(entry.first_logit + entry.logit_count - 1);
  const std::span<const int32_t> tokens = scheduler_.tokens(entry.id);
  const auto prompt = tokens.first(request.prompt.size());
  const auto generated = tokens.subspan(request.prompt.size());
  const std::vector<float> unprocessed = request.logprobs >= 0
                                             ? std::vector<float>(logits.begin(), logits.end())
                                             : std::vector<float>();
  const int position = static_cast<int>(generated.size());
  if (position < request.min_tokens) {
    for (int32_t stop : request.stop_token_ids) {
      logits[stop] = -std::numeric_limits<float>::infinity();
    }
  }
  NewToken token{.id = entry.id, .position = position};
  token.token = model::SampleToken(logits, request.sampling, prompt, generated);
  AddLogprobs(unprocessed, request.logprobs, token);
  return token;
}

void Engine::Append(const Sequence& sequence, NewToken token) {
  scheduler_.Append(token.id, token.token);
  token.finish = FinishOf(token.token, sequence);
  if (token.finish != v1::FINISH_REASON_NONE) End(token.id);
  result_.tokens.push_back(std::move(token));
}

void Engine::Fail(SequenceId id, absl::Status status) {
  End(id);
  result_.failed.push_back({id, std::move(status)});
}

}  // namespace epic::worker
