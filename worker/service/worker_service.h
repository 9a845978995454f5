// WorkerService: a worker's side of the control stream. It hands StartSequence and EndSequence to
// the Engine, and each step to the coordinator as one StepReport. A plain object on the loop's
// thread: it gets messages and turns, and returns messages through a ControlLink.
//
//   service.Connect(&link);            // introduces itself
//   service.ReportLoading(done, all);  // while the model loads
//   service.Serve(engine, ready);      // WorkerReady goes out
//   while (…) { loop.RunOnce(…); service.Advance(); }
//
// A higher attempt of a sequence replaces the one here; a lower or equal one is ignored. The link
// delivers what was handed to Send once and in order, or goes down. All sequences are dropped then,
// and the coordinator starts them anew.
#pragma once

#include <cstdint>
#include <optional>

#include "base/env.h"
#include "cluster/control_link.h"
#include "proto/epic/v1/worker.pb.h"
#include "worker/engine/engine.h"

namespace epic::worker {

class WorkerService {
 public:
  // `clock` measures steps for the reports, nothing else.
  explicit WorkerService(const Clock& clock) : clock_(clock) {}

  // A link to a coordinator that knows nothing of this worker's sequences: they are dropped, and
  // what the worker is (or how far it has loaded) is said. Null: no coordinator for now.
  void Connect(cluster::ControlLink* link);
  // From a ControlLinkHandlers::on_message.
  void OnMessage(const v1::ControlMessage& message);

  // Before Serve. At most one message for each hundredth of `total_bytes`.
  void ReportLoading(int64_t loaded_bytes, int64_t total_bytes);
  // From now on requests are served. `engine` outlives the service.
  void Serve(Engine& engine, v1::WorkerReady ready);
  // The engine is given up, with its sequences, until Serve is called again. The coordinator knows
  // or is about to: the link is not used for it.
  void StopServing();
  // Takes no new sequences; those here are finished. As a Drain message does.
  void StartDraining() { draining_ = true; }

  // Whether Advance has something to do.
  bool busy() const { return engine_ != nullptr && engine_->busy(); }
  // Whether it will do nothing until another rank has answered.
  bool waiting() const { return waiting_; }
  // Does a part of a step, and sends its report at its end.
  void Advance();
  // Draining, and nothing is left to do.
  bool drained() const { return draining_ && !busy(); }

 private:
  void Start(const v1::StartSequence& start);
  void End(const v1::EndSequence& end);
  void DropAll();
  void Fail(const SequenceName& name, const absl::Status& status);

  v1::StepReport ReportOf(StepResult step);
  // Adds the gauges to it.
  void SendReport(v1::StepReport report);
  void Send(v1::ControlMessage message);

  const Clock& clock_;
  cluster::ControlLink* link_ = nullptr;
  Engine* engine_ = nullptr;
  v1::WorkerReady ready_;
  v1::LoadProgress loading_;
  bool draining_ = false;
  bool waiting_ = false;
  std::optional<absl::Time> step_began_;
};

}  // namespace epic::worker
