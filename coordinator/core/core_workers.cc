// The half of Core that hears workers, and what it tells of them.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/log.h"
#include "coordinator/core/convert.h"
#include "coordinator/core/core.h"

namespace epic::coordinator {

void Core::OnMessage(int rank, const v1::ControlMessage& message) {
  const auto found = workers_.find(rank);
  if (found == workers_.end()) return;
  switch (message.body_case()) {
    case v1::ControlMessage::kReady:
      return OnReady(rank, message.ready());
    case v1::ControlMessage::kLoadProgress:
      found->second.status.loaded_bytes = message.load_progress().loaded_bytes();
      found->second.status.total_bytes = message.load_progress().total_bytes();
      return;
    case v1::ControlMessage::kStep:
      return OnStep(rank, message.step());
    case v1::ControlMessage::kSequenceFailed:
      return OnFailed(rank, message.sequence_failed());
    default:
      LOG_WARNING("rank {} sent a message of kind {}, which is unknown here", rank,
                  static_cast<int>(message.body_case()));
  }
}

void Core::OnReady(int rank, const v1::WorkerReady& ready) {
  Worker& worker = workers_.at(rank);
  if (profile_.empty()) {
    profile_ = ready.profile();
    checkpoint_ = ready.checkpoint();
    model_.system_fingerprint = Fingerprint(profile_, checkpoint_);
  } else if (profile_ != ready.profile() || checkpoint_ != ready.checkpoint()) {
    // Other bits would come out of it in the middle of an answer.
    LOG_ERROR("rank {} is refused: it has profile {} and checkpoint {}, this world {} and {}", rank,
              ready.profile(), ready.checkpoint(), profile_, checkpoint_);
    worker.status.state = "refused";
    return;
  }
  model_.max_model_len = model_.max_model_len == 0
                             ? ready.max_model_len()
                             : std::min(model_.max_model_len, ready.max_model_len());
  worker.ready = ready;
  worker.status.state = "ready";
  worker.status.description = ready.description();
  worker.status.profile = ready.profile();
  worker.status.kv_page_count = ready.kv_page_count();
  worker.status.loaded_bytes = worker.status.total_bytes;
  LOG_INFO("rank {} is ready: {}, profile {}", rank, ready.description(), ready.profile());
  PlaceWaiting();
}

void Core::OnStep(int rank, const v1::StepReport& report) {
  Worker& worker = workers_.at(rank);
  worker.last_step_at = env_.clock.Now();
  worker.status.steps = static_cast<int64_t>(report.step());
  worker.status.running = report.running();
  worker.status.waiting = report.waiting();
  worker.status.kv_pages_used = report.kv_pages_used();
  worker.status.preemptions = report.preemptions();
  for (const v1::PromptScored& prompt : report.prompts()) OnPrompt(rank, prompt);
  for (const v1::SequenceToken& token : report.tokens()) OnToken(rank, token);
  PlaceWaiting();
}

void Core::OnPrompt(int rank, const v1::PromptScored& prompt) {
  const auto found = sequences_.find(prompt.sequence());
  if (found == sequences_.end() || found->second.rank != rank) return;
  Sequence& sequence = found->second;
  if (prompt.attempt() != sequence.attempt) return;
  sequence.uncomputed_tokens = 0;
  if (sequence.choice != 0) return;
  std::vector<JournalToken> logprobs;
  for (const v1::SequenceToken& token : prompt.prompt_logprobs()) {
    logprobs.push_back(TokenFrom(token));
  }
  const auto& journal = requests_.at(sequence.request).journal;
  journal->SetPrompt(prompt.cached_tokens(), std::move(logprobs));
  grown_[sequence.request] = journal;
}

void Core::OnToken(int rank, const v1::SequenceToken& token) {
  const auto found = sequences_.find(token.sequence());
  if (found == sequences_.end() || found->second.rank != rank) return;
  Sequence& sequence = found->second;
  const auto& journal = requests_.at(sequence.request).journal;
  switch (journal->Append(sequence.choice, token.attempt(), token.position(), TokenFrom(token))) {
    case AppendResult::kStale:
    case AppendResult::kRepeated:
      return;
    case AppendResult::kMismatch:
      ++metrics_.replay_mismatches;
      LOG_ERROR("rank {}: sequence {} has another token at position {} than before", rank,
                token.sequence(), token.position());
      return;
    case AppendResult::kGap:
      LOG_WARNING("rank {}: sequence {} jumps to position {}; it is submitted again", rank,
                  token.sequence(), token.position());
      return Resubmit(token.sequence());
    case AppendResult::kAppended:
      break;
  }
  grown_[sequence.request] = journal;
  sequence.uncomputed_tokens = 0;
  const bool stopped = sequence.stop != nullptr && sequence.stop->Push(token.token());
  if (stopped || token.finish_reason() == "stop") {
    return EndSequence(token.sequence(), FinishReason::kStop, absl::OkStatus());
  }
  if (token.finish_reason() == "length") {
    EndSequence(token.sequence(), FinishReason::kLength, absl::OkStatus());
  }
}

void Core::OnFailed(int rank, const v1::SequenceFailed& failed) {
  const auto found = sequences_.find(failed.sequence());
  if (found == sequences_.end() || found->second.rank != rank ||
      found->second.attempt != failed.attempt()) {
    return;
  }
  const auto code = static_cast<absl::StatusCode>(failed.code());
  if (code == absl::StatusCode::kUnavailable) {
    // It drains: another rank will do it, or its successor.
    workers_.at(rank).status.state = "draining";
    Resubmit(failed.sequence());
    return PlaceWaiting();
  }
  EndSequence(failed.sequence(), FinishReason::kError, absl::Status(code, failed.message()));
}

void Core::OnDown(int rank, const absl::Status& status) {
  const auto found = workers_.find(rank);
  if (found == workers_.end()) return;
  const std::set<uint64_t> sequences = found->second.sequences;
  ++metrics_.workers_lost;
  LOG_WARNING("rank {} is lost with {} sequences, which go on elsewhere: {}", rank,
              sequences.size(), std::string(status.message()));
  for (const uint64_t id : sequences) Resubmit(id);
  // The link may be on the stack.
  env_.loop.Post([link = std::shared_ptr<cluster::ControlLink>(std::move(found->second.link))] {});
  workers_.erase(found);
  PlaceWaiting();
}

absl::Duration Core::StepAge(const Worker& worker) const {
  if (worker.sequences.empty()) return absl::ZeroDuration();
  return env_.clock.Now() - worker.last_step_at;
}

absl::Status Core::Ready() const {
  if (draining_) return absl::UnavailableError("draining: no new requests are taken");
  if (workers_.empty()) return absl::UnavailableError("no worker");
  std::string why = "no worker is ready";
  for (const auto& [rank, worker] : workers_) {
    const RankStatus& at = worker.status;
    if (at.state == "ready") return absl::OkStatus();
    if (at.state == "loading" && at.total_bytes > 0) {
      why = absl::StrFormat("loading %d %%", at.loaded_bytes * 100 / at.total_bytes);
    } else {
      why = at.state;
    }
  }
  return absl::UnavailableError(why);
}

absl::Status Core::Healthy() const {
  if (absl::Status status = Ready(); !status.ok()) return status;
  for (const auto& [rank, worker] : workers_) {
    if (StepAge(worker) <= kStepAgeMax) continue;
    return absl::UnavailableError(absl::StrFormat("rank %d: work queued and no step for %d s", rank,
                                                  absl::ToInt64Seconds(StepAge(worker))));
  }
  return absl::OkStatus();
}

ModelInfo Core::model() const {
  const std::lock_guard lock(mutex_);
  return model_;
}

Status Core::status() const {
  const std::lock_guard lock(mutex_);
  const absl::Status healthy = Healthy();
  Status status{.ready = healthy.ok(), .reason = std::string(healthy.message())};
  for (const auto& [id, entry] : requests_) {
    bool begun = false;
    for (int choice = 0; choice < entry.request.choices; ++choice) {
      begun = begun || entry.journal->length(choice) > 0;
    }
    ++(begun ? status.requests_running : status.requests_waiting);
  }
  for (const auto& [rank, worker] : workers_) {
    status.ranks.push_back(worker.status);
    status.ranks.back().last_step_age = StepAge(worker);
  }
  return status;
}

}  // namespace epic::coordinator
