// Rank: a worker's part in a world, whatever drives it: epic-worker with sockets and a model, the
// simulator with neither. It dials the coordinator, holds sequences (WorkerService), takes turns
// with its exchange (ExchangePolicy), reports what it does, and ends when it is let go.
//
//   Rank rank(env, identity, dial, policy, options, handlers);
//   … load, with rank.ReportLoading …
//   rank.Serve(engine, model, ready);              // ranks with the attention role
//   while (!rank.over()) {
//     loop.RunOnce(rank.wait_max());         // handlers are called from here
//     rank.Turn();
//   }
//   return rank.status();
//
// The end has one path. A rank that is told to end (Drain: SIGTERM) takes no new sequences and, if
// it may, asks the coordinator to move its experts and sequences; the coordinator answers with a
// Drain message, as it sends to a rank that an operator drains. Once the sequences are gone and it
// was let go, or has waited long enough, the rank says Goodbye, and is over when the coordinator
// closes the link.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/env.h"
#include "worker/connection.h"
#include "worker/engine/engine.h"
#include "worker/rank/exchange_policy.h"
#include "worker/rank/sleep_meter.h"
#include "worker/rank/work_ticks.h"
#include "worker/service/worker_service.h"

namespace epic::worker {

struct RankOptions {
  // Whether a rank that is told to end asks the coordinator to be drained.
  bool asks_to_leave = true;
  // How long it then waits to be let go.
  absl::Duration leave_time;
};

// All are optional.
struct RankHandlers {
  // The coordinator calls this process `rank` from now on; no other rank knows that yet.
  std::function<void(int rank, uint64_t generation)> on_welcome;
  // Adds to a report what only the process knows: its memory and its wires.
  std::function<void(v1::RankReport& report)> add_gauges;
};

// A plain object; one thread, that of env.loop.
class Rank {
 public:
  // Dials at once. `policy` and all that `env` names outlive the rank; the loop does not run
  // tasks of the rank once it is destroyed.
  Rank(Env env, v1::WorkerIdentity identity, ControlDialer dial, ExchangePolicy& policy,
       RankOptions options, RankHandlers handlers = {});
  ~Rank();
  Rank(const Rank&) = delete;

  // Before Serve: how much is loaded of all that is to be.
  void ReportLoading(int64_t loaded_bytes, int64_t total_bytes);
  // Sequences are taken from now on. `engine`, which computes with `model`, outlives the rank or
  // the next StopServing.
  void Serve(Engine& engine, TokenModel& model, v1::WorkerReady ready);
  // The engine is given up with its sequences; Serve may be called again.
  void StopServing();

  // One stage of a step and one piece of the exchange's work. Never waits.
  void Turn();
  // Whether the next turn would do something although nothing arrives. It is asked of every owner
  // of work, here alone: the step under way, and the exchange with its rows and experts.
  bool CanGoOn() const;
  // How long the loop may sleep before the next turn if nothing arrives; zero, exactly, if
  // something can go on. It is no point in time: a difference of two readings of a clock would be a
  // little more than zero, and a loop that waits in milliseconds would sleep for one.
  absl::Duration wait_max() const;

  // The process is told to end. A second call waits no longer to be let go.
  void Drain();
  // Whether it was told to end, by the process or by the coordinator.
  bool ends() const { return ends_; }
  // It has ended: let go, refused, or failed.
  bool over() const { return over_; }
  // Why it is over. OK: it was told to end and has drained.
  const absl::Status& status() const { return status_; }

  // For operations that take long, during which neither loop nor rank turns.
  void ReportProgress();
  absl::Duration asleep_with_work() const { return sleep_meter_.asleep_with_work(); }

 private:
  void OnMessage(const v1::ControlMessage& message);
  void OnLink(cluster::ControlLink* link);
  void AdvanceSequences();
  void AdvanceEnd();
  bool MayLeave() const;
  void AskToLeave();
  void SayGoodbye();
  void End(absl::Status why);
  void OnReportTime();
  void Report();
  // All that has arrived and may give the rank work.
  int64_t inputs() const { return control_inputs_ + policy_.arrivals(); }

  const Env env_;
  const v1::WorkerIdentity identity_;
  ExchangePolicy& policy_;
  const RankOptions options_;
  const RankHandlers handlers_;
  WorkerService sequences_;
  WorkTicks ticks_;
  SleepMeter sleep_meter_;
  Connection connection_;
  cluster::ControlLink* link_ = nullptr;
  Engine* engine_ = nullptr;  // with model_; null while nothing is served
  TokenModel* model_ = nullptr;
  bool could_go_on_ = false;    // at the end of the last turn
  int64_t control_inputs_ = 0;  // messages, and links that came or went
  absl::Time reported_at_ = absl::InfinitePast();
  TimerId report_timer_ = 0;
  // The end.
  bool welcomed_ = false;  // on the present link
  bool ends_ = false;
  bool told_to_drain_ = false;  // by the coordinator
  absl::Time leave_at_ = absl::InfinitePast();
  absl::Time goodbye_at_ = absl::InfiniteFuture();  // when Goodbye was said
  bool over_ = false;
  absl::Status status_;
};

}  // namespace epic::worker
