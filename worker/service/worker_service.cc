#include "worker/service/worker_service.h"

#include <utility>

#include "base/check.h"
#include "base/failpoint.h"
#include "base/log.h"

namespace epic::worker {

// The coordinator at the other end knows nothing of the sequences here, or has given them to others
// while the link was down: their tokens would come twice.
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
      LOG_INFO("draining: {} sequences to finish",
               engine_ == nullptr ? 0 : engine_->sequence_count());
      return StartDraining();
    default:
      LOG_WARNING("ignored a control message of kind {}", static_cast<int>(message.body_case()));
  }
}

void WorkerService::ReportLoading(int64_t loaded_bytes, int64_t total_bytes) {
  CHECK(engine_ == nullptr);
  // Hundredths, for people watch them; a message for each tensor would be thousands.
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

// The step under way is given up too: nobody will ask for its end.
void WorkerService::StopServing() {
  DropAll();
  engine_ = nullptr;
  waiting_ = false;
  step_began_.reset();
}

void WorkerService::Start(const v1::StartSequence& start) {
  const SequenceName name{start.sequence(), start.attempt()};
  if (engine_ == nullptr) return Fail(name, absl::UnavailableError("the model is loading"));
  const uint32_t held = engine_->AttemptOf(name.sequence);
  // A start that was overtaken by the next attempt, or came twice.
  if (held != 0 && name.attempt <= held) return;
  engine_->End({name.sequence, held});
  // Unavailable: the coordinator sends it to another rank, and no client sees an error.
  if (draining_) return Fail(name, absl::UnavailableError("the worker is draining"));
  if (absl::Status status = engine_->Start(start); !status.ok()) return Fail(name, status);
  Pass(Failpoint::kSequenceStarted);
}

void WorkerService::End(const v1::EndSequence& end) {
  const uint32_t held = engine_ == nullptr ? 0 : engine_->AttemptOf(end.sequence());
  // An end of an attempt that was replaced is not the end of its successor.
  if (held == 0 || held > end.attempt()) return;
  engine_->End({end.sequence(), held});
  // No step will tell of the pages that are free now.
  if (!busy()) SendReport({});
}

void WorkerService::DropAll() {
  if (engine_ != nullptr) engine_->EndAll();
}

void WorkerService::Fail(const SequenceName& name, const absl::Status& status) {
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
  // A step takes many calls; its time is from the first to the last.
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
  v1::StepReport report = ReportOf(engine_->TakeResult());
  report.set_step_seconds(absl::ToDoubleSeconds(clock_.Now() - *step_began_));
  step_began_.reset();
  Pass(Failpoint::kStepComputed);
  SendReport(std::move(report));
  Pass(Failpoint::kStepReported);
}

v1::StepReport WorkerService::ReportOf(StepResult step) {
  // Each failure is a message of its own, ahead of the report.
  for (const FailedSequence& failed : step.failed) Fail(failed.name, failed.status);
  v1::StepReport report;
  report.set_rows(step.rows);
  for (v1::SequenceToken& token : step.tokens) *report.add_tokens() = std::move(token);
  for (v1::PromptScored& prompt : step.prompts) *report.add_prompts() = std::move(prompt);
  return report;
}

void WorkerService::SendReport(v1::StepReport report) {
  CHECK(engine_ != nullptr);
  // Gauges of after the step, so that the coordinator's next placement knows what is free.
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

// Without a coordinator there is nobody to tell; the next one starts from nothing.
void WorkerService::Send(v1::ControlMessage message) {
  if (link_ != nullptr) link_->Send(std::move(message));
}

}  // namespace epic::worker
