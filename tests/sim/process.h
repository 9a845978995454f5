// Process: one life of a worker process in the simulated world: the real Rank over the real
// MessagePolicy, Engine, Scheduler and PageLedger, with a toy model. The process adds only what
// turns cost, faults, and the judges of what each rank must keep to.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "tests/sim/dice.h"
#include "tests/sim/network.h"
#include "tests/sim/process_loop.h"
#include "tests/sim/toy.h"
#include "worker/engine/engine.h"
#include "worker/rank/message_policy.h"
#include "worker/rank/rank.h"

namespace epic::sim {

struct ProcessOptions {
  int seat = 0;  // the machine, over all lives
  uint64_t seed = 0;
  bool attention = false;
  bool experts = false;
  int machine = 0;
  int expert_count = 0;  // of each layer
  int slots = 0;
  int pages = 0;
  absl::Duration start_time;  // until it can take sequences
  absl::Duration load_time;   // of one expert
  double slowness = 1;
};

struct ProcessHandlers {
  // Opens a link to the coordinator; what arrives there is posted to `loop`.
  std::function<std::unique_ptr<cluster::ControlLink>(Loop& loop, v1::ControlHello hello,
                                                      cluster::ControlLinkHandlers handlers)>
      dial;
  std::function<void(const std::string&)> violation;
  // The process has ended by itself: it has drained.
  std::function<void()> on_end;
};

class Process {
 public:
  Process(SimLoop& clock, SimNetwork& network, const ProcessOptions& options,
          ProcessHandlers handlers);
  ~Process();
  Process(const Process&) = delete;

  // SIGSTOP: nothing is done until then, though the kernel goes on taking what arrives.
  void Hang(absl::Duration lasts);
  bool hangs() const { return hung_until_ > clock_.Now(); }
  void SlowDown(double factor) { slowness_ = factor; }
  // SIGTERM.
  void Terminate();

  const ProcessOptions& options() const { return options_; }
  // In the world; -1: not welcomed yet.
  int rank() const { return number_; }
  const worker::MessageExchange& exchange() const { return policy_.exchange(); }
  const worker::Engine& engine() const { return engine_; }
  const worker::PageLedger& pages() const { return pages_; }

 private:
  void Wake() { WakeAt(clock_.Now()); }
  void WakeAt(absl::Time when);
  void Turn();
  void StartServing();
  void PlanTurn();
  void Judge();

  SimLoop& clock_;
  Dice dice_;
  const ProcessOptions options_;
  const ProcessHandlers handlers_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  double slowness_;
  absl::Time starts_at_;
  absl::Time hung_until_ = absl::InfinitePast();
  absl::Time next_turn_ = absl::InfiniteFuture();
  bool serves_ = false;
  int number_ = -1;
  // Of the judges.
  cluster::MapVersion map_seen_;
  int64_t nacks_before_map_ = 0;

  ProcessLoop loop_;
  SeededRandom random_;
  SimTransport transport_;
  SimExperts slots_;
  worker::MessagePolicy policy_;
  SimModel model_;
  worker::PageLedger pages_;
  worker::Engine engine_;
  worker::Rank rank_;
};

}  // namespace epic::sim
