#include "worker/service/worker_service.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "cluster/weights_id.h"
#include "worker/service/convert.h"

namespace epic::worker {

void WorkerService::Connect(cluster::ControlLink* link) {
  DropAll();
  link_ = link;
  v1::ControlMessage message;
  if (engine_ != nullptr) {
    *message.mutable_ready() = ready_;
  } else if (loading_.total_bytes() > 0) {
    *message.mutable_load_progress() = loading_;
  } else {
    return;
  }
  Send(std::move(message));
}

void WorkerService::OnMessage(const v1::ControlMessage& message) {
  switch (message.body_case()) {
    case v1::ControlMessage::kStart:
      return Start(message.start());
    case v1::ControlMessage::kEnd:
      return End(message.end());
    case v1::ControlMessage::kDrain:
      LOG_INFO("draining: {} sequences to finish", held_.size());
      return StartDraining();
    default:
      LOG_WARNING("ignored a control message of kind {}", static_cast<int>(message.body_case()));
  }
}

void WorkerService::ReportLoading(int64_t loaded_bytes, int64_t total_bytes) {
  CHECK(engine_ == nullptr);
  const bool whole = loaded_bytes == total_bytes;
  const bool first = loading_.total_bytes() == 0;
  if (!first && !whole && (loaded_bytes - loading_.loaded_bytes()) * 100 < total_bytes) return;
  loading_.set_loaded_bytes(loaded_bytes);
  loading_.set_total_bytes(total_bytes);
  v1::ControlMessage message;
  *message.mutable_load_progress() = loading_;
  Send(std::move(message));
}

void WorkerService::Serve(Engine& engine, v1::WorkerReady ready) {
  CHECK(engine_ == nullptr);
  engine_ = &engine;
  ready_ = std::move(ready);
  v1::ControlMessage message;
  *message.mutable_ready() = ready_;
  Send(std::move(message));
}

void WorkerService::StopServing() {
  DropAll();
  engine_ = nullptr;
  waiting_ = false;
  step_began_.reset();
}

void WorkerService::Start(const v1::StartSequence& start) {
  const Name name{start.sequence(), start.attempt()};
  const auto held = held_.find(name.sequence);
  if (held != held_.end() && name.attempt <= held->second.attempt) return;
  Drop(name.sequence);
  if (engine_ == nullptr) return Fail(name, absl::UnavailableError("the model is loading"));
  if (draining_) return Fail(name, absl::UnavailableError("the worker is draining"));
  const absl::StatusOr<cluster::WeightsId> weights = cluster::WeightsIdFrom(start.weights_id());
  if (!weights.ok()) return Fail(name, weights.status());
  SequenceRequest request = RequestFrom(start);
  request.id = next_id_++;
  const SequenceId id = request.id;
  if (absl::Status status = engine_->Start(std::move(request)); !status.ok()) {
    return Fail(name, status);
  }
  held_[name.sequence] = {name.attempt, id};
  names_[id] = name;
  Pass(Failpoint::kSequenceStarted);
}

void WorkerService::End(const v1::EndSequence& end) {
  const auto held = held_.find(end.sequence());
  if (held == held_.end() || held->second.attempt > end.attempt()) return;
  Drop(end.sequence());
  // No step will tell of the pages that are free now.
  if (!busy()) SendReport({});
}

void WorkerService::Drop(uint64_t sequence) {
  const auto held = held_.find(sequence);
  if (held == held_.end()) return;
  engine_->End(held->second.id);
  names_.erase(held->second.id);
  held_.erase(held);
}

void WorkerService::DropAll() {
  while (!held_.empty()) Drop(held_.begin()->first);
}

void WorkerService::Fail(const Name& name, const absl::Status& status) {
  LOG_WARNING("sequence {} attempt {} failed: {}", name.sequence, name.attempt,
              std::string(status.message()));
  v1::ControlMessage message;
  v1::SequenceFailed& failed = *message.mutable_sequence_failed();
  failed.set_sequence(name.sequence);
  failed.set_attempt(name.attempt);
  failed.set_code(static_cast<int32_t>(status.code()));
  failed.set_message(std::string(status.message()));
  Send(std::move(message));
}

void WorkerService::Advance() {
  waiting_ = false;
  if (!busy()) return;
  if (!step_began_) step_began_ = clock_.Now();
  const Engine::Progress progress = engine_->Advance();
  waiting_ = progress == Engine::Progress::kWaiting;
  switch (progress) {
    case Engine::Progress::kRunning:
    case Engine::Progress::kWaiting:
      return;
    case Engine::Progress::kIdle:
      step_began_.reset();
      return;
    case Engine::Progress::kStepDone:
      break;
  }
  const StepResult& step = engine_->result();
  v1::StepReport report;
  AddStep(step, report);
  report.set_step_seconds(absl::ToDoubleSeconds(clock_.Now() - *step_began_));
  step_began_.reset();
  Pass(Failpoint::kStepComputed);
  SendReport(std::move(report));
  Pass(Failpoint::kStepReported);
}

void WorkerService::AddStep(const StepResult& step, v1::StepReport& report) {
  report.set_rows(step.rows);
  for (const NewToken& token : step.tokens) *report.add_tokens() = Token(token);
  for (const PromptScores& prompt : step.prompts) {
    const Name& name = names_.at(prompt.id);
    v1::PromptScored& scored = *report.add_prompts();
    scored.set_sequence(name.sequence);
    scored.set_attempt(name.attempt);
    for (const NewToken& token : prompt.tokens) *scored.add_prompt_logprobs() = Token(token);
  }
  for (const FailedSequence& failed : step.failed) {
    const Name name = names_.at(failed.id);
    Drop(name.sequence);
    Fail(name, failed.status);
  }
  for (const NewToken& token : step.tokens) {
    if (token.finish != v1::FINISH_REASON_NONE) Drop(names_.at(token.id).sequence);
  }
}

v1::SequenceToken WorkerService::Token(const NewToken& token) const {
  const Name& name = names_.at(token.id);
  v1::SequenceToken message = MessageFrom(token);
  message.set_sequence(name.sequence);
  message.set_attempt(name.attempt);
  return message;
}

void WorkerService::SendReport(v1::StepReport report) {
  const Scheduler& scheduler = engine_->scheduler();
  report.set_step(engine_->steps());
  report.set_running(scheduler.running());
  report.set_waiting(scheduler.waiting());
  report.set_kv_pages_used(engine_->pages().used_count());
  report.set_preemptions(scheduler.preemptions());
  report.set_prompt_tokens_computed(engine_->prompt_rows_computed());
  v1::ControlMessage message;
  *message.mutable_step() = std::move(report);
  Send(std::move(message));
}

void WorkerService::Send(v1::ControlMessage message) {
  if (link_ != nullptr) link_->Send(std::move(message));
}

}  // namespace epic::worker
