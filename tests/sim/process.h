// Process: one life of a worker process in the simulated world: the real WorkerService,
// RankService, Engine, Scheduler, PageLedger and MessageExchange, with a toy model, and the loop
// that drives them.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "tests/sim/control.h"
#include "tests/sim/network.h"
#include "tests/sim/toy.h"
#include "worker/engine/engine.h"
#include "worker/exchange/message_exchange.h"
#include "worker/rank/work.h"
#include "worker/service/rank_service.h"
#include "worker/service/worker_service.h"

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

// What a process tells of itself.
struct ProcessHandlers {
  std::function<void(const std::string&)> violation;
  // Revoked, or its link is down: it wants to join as a new generation.
  std::function<void()> on_renew;
  // Drained: it ends for good.
  std::function<void()> on_goodbye;
};

class Process {
 public:
  Process(SimLoop& loop, SimNetwork& network, const ProcessOptions& options,
          ProcessHandlers handlers);
  ~Process();
  Process(const Process&) = delete;

  v1::ControlHello Hello() const;
  // The coordinator has taken the hello.
  cluster::ControlLinkHandlers Connect(std::unique_ptr<cluster::ControlLink> link);

  // SIGSTOP: nothing is done until then, though the kernel goes on taking what arrives.
  void Hang(absl::Duration lasts);
  bool hangs() const { return hung_until_ > loop_.Now(); }
  void SlowDown(double factor) { slowness_ = factor; }

  const ProcessOptions& options() const { return options_; }
  // In the world; -1: not welcomed yet.
  int rank() const { return rank_; }
  const worker::MessageExchange& exchange() const { return exchange_; }
  const worker::Engine& engine() const { return engine_; }
  const worker::PageLedger& pages() const { return pages_; }

 private:
  void Wake() { WakeAt(loop_.Now()); }
  void WakeAt(absl::Time when);
  void Turn();
  void TakeMessages();
  void OnMessage(const v1::ControlMessage& message);
  // Leaves the world, and joins it as another generation.
  void Renew();
  void StartServing();
  bool CanGoOn() const { return worker::CanGoOn(sequences_, exchange_, service_); }
  void PlanTurn();
  void Serve();
  // Of what has arrived.
  int64_t inputs() const { return control_messages_ + exchange_.counters().arrivals; }
  void Report();
  void Judge();
  void SayGoodbye();

  SimLoop& loop_;
  Dice dice_;
  const ProcessOptions options_;
  const ProcessHandlers handlers_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  double slowness_;
  int rank_ = -1;
  uint64_t generation_;
  SimTransport transport_;
  cluster::PeerNetwork network_{transport_};
  SimExperts slots_;
  worker::MessageExchange exchange_;
  SimModel model_;
  worker::PageLedger pages_;
  worker::Engine engine_;
  worker::WorkerService sequences_;
  worker::RankService service_;
  std::unique_ptr<cluster::ControlLink> link_;
  std::vector<v1::ControlMessage> messages_;
  bool leaves_ = false;    // the link is down, or this generation is revoked
  bool over_ = false;      // drained
  bool started_ = false;   // takes sequences
  bool could_go_on_ = false;  // at the end of the last turn
  worker::SleepMeter sleep_meter_;
  int64_t control_messages_ = 0;  // and links that came or went
  cluster::MapVersion map_seen_;
  int64_t nacks_before_map_ = 0;
  absl::Time starts_at_;
  absl::Time hung_until_ = absl::InfinitePast();
  absl::Time next_turn_ = absl::InfiniteFuture();
  absl::Time next_report_;
};

}  // namespace epic::sim
