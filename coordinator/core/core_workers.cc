// The half of Core that hears workers, and what it tells of them.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/log.h"
#include "base/mutant.h"
#include "coordinator/core/convert.h"
#include "coordinator/core/core.h"

namespace epic::coordinator {

void Core::OnMessage(int rank, const v1::ControlMessage& message) {
  if (workers_.count(rank) == 0) return;
  switch (message.body_case()) {
    case v1::ControlMessage::kStep:
      return OnStep(rank, message.step());
    case v1::ControlMessage::kSequenceFailed:
      return OnFailed(rank, message.sequence_failed());
    default:
      ChangeWorld([&] {
        world_.OnMessage(rank, message, env_.clock.Now());
        if (message.has_ready()) OnReady(rank);
      });
  }
}

void Core::OnReady(int rank) {
  const Member& member = world_.members().at(rank);
  if (!member.refusal.empty()) return;
  const v1::WorkerReady& ready = *member.ready;
  if (model_.system_fingerprint.empty()) {
    model_.system_fingerprint = Fingerprint(ready.profile(), ready.checkpoint());
  }
  model_.max_model_len = model_.max_model_len == 0
                             ? ready.max_model_len()
                             : std::min(model_.max_model_len, ready.max_model_len());
}

void Core::OnStep(int rank, const v1::StepReport& report) {
  Worker& worker = workers_.at(rank);
  worker.last_step_at = env_.clock.Now();
  worker.step = {.running = report.running(),
                 .waiting = report.waiting(),
                 .kv_pages_used = report.kv_pages_used(),
                 .number = static_cast<int64_t>(report.step()),
                 .preemptions = report.preemptions()};
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
  if (sequence.deaths.suspect()) {
    sequence.deaths.OnToken();
    EndIsolation(token.sequence());
  }
  // The journal ends where the clients' parsers end the text, for they are of the same format.
  if (sequence.parser) sequence.parser->Push(token.token());
  const bool stopped = sequence.parser && sequence.parser->ended();
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
    world_.NoteDraining(rank, env_.clock.Now());
    Resubmit(failed.sequence());
    return PlaceWaiting();
  }
  EndSequence(failed.sequence(), FinishReason::kError, absl::Status(code, failed.message()));
}

void Core::OnLost(const LostRanks& lost) {
  std::set<uint64_t> sequences;
  for (const int rank : lost.ranks) {
    const auto found = workers_.find(rank);
    if (found == workers_.end()) continue;
    const std::set<uint64_t> own = found->second.sequences;
    ++metrics_.workers_lost;
    if (!own.empty()) {
      events_.Append("resubmit", rank, 0,
                     absl::StrCat("its ", own.size(), " sequences go on elsewhere"));
    }
    for (const uint64_t id : own) {
      if (!EPIC_MUTANT("lost_ranks_keep_sequences")) Resubmit(id);
    }
    // The link may be on the stack.
    env_.loop.Post(
        [link = std::shared_ptr<cluster::ControlLink>(std::move(found->second.link))] {});
    workers_.erase(found);
    sequences.insert(own.begin(), own.end());
  }
  if (!lost.unexplained) return;
  for (const uint64_t id : sequences) {
    const auto sequence = sequences_.find(id);
    // Its request may have been quarantined with another one of its sequences.
    if (sequence == sequences_.end()) continue;
    const auto& journal = requests_.at(sequence->second.request).journal;
    OnDeath(id, journal->length(sequence->second.choice), sequences.size() == 1);
  }
}

void Core::OnDeath(uint64_t id, int length, bool alone) {
  Sequence& sequence = sequences_.at(id);
  const std::string name = requests_.at(sequence.request).request.id;
  switch (sequence.deaths.OnDeath(length, alone)) {
    case Deaths::Verdict::kGoesOn:
      return;
    case Deaths::Verdict::kSuspect:
      events_.Append(
          "suspect", -1, 0,
          absl::StrCat("request ", name, " runs alone: ranks died twice at its token ", length));
      return;
    case Deaths::Verdict::kQuarantine:
      ++metrics_.quarantined;
      events_.Append("quarantine", -1, 0,
                     absl::StrCat("request ", name, ": ranks that computed it alone died twice at ",
                                  "its token ", length));
      return EndRequest(sequence.request, FinishReason::kError,
                        absl::InternalError("the workers that computed this request died twice; "
                                            "it is not tried again"));
  }
}

void Core::MoveAway(int rank) {
  const auto found = workers_.find(rank);
  if (found == workers_.end() || found->second.sequences.empty()) return;
  const std::set<uint64_t> sequences = found->second.sequences;
  events_.Append("resubmit", rank, 0,
                 absl::StrCat("its ", sequences.size(), " sequences move elsewhere"));
  for (const uint64_t id : sequences) {
    v1::ControlMessage message;
    message.mutable_end()->set_sequence(id);
    message.mutable_end()->set_attempt(sequences_.at(id).attempt);
    found->second.link->Send(std::move(message));
    Resubmit(id);
  }
}

absl::Duration Core::StepAge(const Worker& worker) const {
  if (worker.sequences.empty()) return absl::ZeroDuration();
  return env_.clock.Now() - worker.last_step_at;
}

absl::Status Core::Ready() const {
  if (draining_) return absl::UnavailableError("draining: no new requests are taken");
  return world_.Ready();
}

absl::Status Core::Healthy() const {
  if (absl::Status status = Ready(); !status.ok()) return status;
  for (const auto& [rank, worker] : workers_) {
    if (StepAge(worker) <= kStepAgeMax) continue;
    const std::string activity = world_.liveness().Activity(rank, env_.clock.Now());
    return absl::UnavailableError(absl::StrFormat("rank %d: work queued and no step for %d s%s%s",
                                                  rank, absl::ToInt64Seconds(StepAge(worker)),
                                                  activity.empty() ? "" : "; it is ", activity));
  }
  return absl::OkStatus();
}

ModelInfo Core::model() const {
  const std::lock_guard lock(mutex_);
  return model_;
}

ClusterStatus Core::status() const {
  const std::lock_guard lock(mutex_);
  const absl::Status healthy = Healthy();
  ClusterStatus status{.ready = healthy.ok(), .reason = std::string(healthy.message())};
  for (const auto& [id, entry] : requests_) {
    bool begun = false;
    for (int choice = 0; choice < entry.request.choices; ++choice) {
      begun = begun || entry.journal->length(choice) > 0;
    }
    ++(begun ? status.requests_running : status.requests_waiting);
  }
  for (const auto& [rank, worker] : workers_) status.ranks.push_back(StatusOf(rank, worker));
  status.frozen = world_.frozen();
  status.map_number = world_.map().version.number;
  if (const ExpertHosts* hosts = world_.hosts(); hosts != nullptr) {
    status.experts = hosts->shape().expert_total();
    status.experts_unhosted = hosts->unhosted_count();
    status.experts_unreplicated = hosts->unreplicated_count();
  }
  return status;
}

RankStatus Core::StatusOf(int rank, const Worker& worker) const {
  const Member& member = world_.members().at(rank);
  const v1::RankReport& report = member.report;
  const absl::Time now = env_.clock.Now();
  RankStatus status{.rank = rank,
                    .generation = member.generation,
                    .state = world_.State(rank),
                    .attention = member.identity.attention(),
                    .experts = member.identity.experts(),
                    .host = member.identity.host(),
                    .activity = world_.liveness().Activity(rank, now),
                    .description = member.identity.description(),
                    .profile = member.identity.profile(),
                    .loaded_bytes = member.load.loaded_bytes(),
                    .total_bytes = member.load.total_bytes()};
  if (member.ready) {
    status.description = member.ready->description();
    status.profile = member.ready->profile();
    status.kv_page_count = member.ready->kv_page_count();
  }
  status.running = worker.step.running;
  status.waiting = worker.step.waiting;
  status.kv_pages_used = worker.step.kv_pages_used;
  status.steps = worker.step.number;
  status.preemptions = worker.step.preemptions;
  status.last_step_age = StepAge(worker);
  status.last_report_age = world_.liveness().ReportAge(rank, now);
  status.sequences = static_cast<int>(worker.sequences.size());
  if (!member.whole && world_.hosts() != nullptr) {
    status.experts_held = static_cast<int>(world_.hosts()->held_count(rank));
  }
  status.expert_slots = member.identity.expert_slots();
  status.map_number = report.map_number();
  status.outstanding_dispatches = report.outstanding_dispatches();
  status.credits = report.credits();
  status.oldest_wait = world_.liveness().WaitAge(rank, now);
  status.expert_rows_served = report.expert_rows_served();
  status.replayed_rows = report.replayed_rows();
  status.stale_frames = report.stale_frames();
  status.doorbell_rescues = report.doorbell_rescues();
  status.resident_bytes = report.resident_bytes();
  status.asleep_with_work = absl::Seconds(report.asleep_with_work_seconds());
  return status;
}

}  // namespace epic::coordinator
