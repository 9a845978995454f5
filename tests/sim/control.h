// The simulated control stream: messages arrive once and in order, late if the network is cut (real
// ones are resumed by number after a redial), until one end's life is over.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "base/sim_loop.h"
#include "cluster/control_link.h"
#include "tests/sim/dice.h"
#include "tests/sim/trace.h"

namespace epic::sim {

class ControlPair : public std::enable_shared_from_this<ControlPair> {
 public:
  enum Side { kCoordinator = 0, kWorker = 1 };

  // `coordinator` and `worker` run what arrives there; the worker's must last as long as its end.
  ControlPair(SimLoop& loop, Loop& coordinator, Loop& worker, uint64_t seed, Trace& trace)
      : loop_(loop), coordinator_(coordinator), worker_(worker), dice_(seed), trace_(trace) {}

  // What has arrived at the side before is handed over at once.
  void SetHandlers(Side side, cluster::ControlLinkHandlers handlers);
  // Called when the worker's machine knows that the coordinator's end is gone, whether or not the
  // worker runs.
  void set_on_worker_down(std::function<void()> on_down) { on_worker_down_ = std::move(on_down); }
  // The end's life is over when it is destroyed; the other's on_down follows.
  std::unique_ptr<cluster::ControlLink> NewEnd(Side side);
  bool alive(Side side) const { return alive_[side]; }
  // Nothing passes for so long.
  void Hold(absl::Duration lasts) { held_until_ = std::max(held_until_, loop_.Now() + lasts); }
  void set_delay_max(absl::Duration delay) { delay_max_ = delay; }

 private:
  class End;
  void Carry(Side from, v1::ControlMessage message);
  void Arrive(Side to, const v1::ControlMessage& message);
  void Close(Side side);
  void TellDown(Side side);
  absl::Time Arrival(Side to);
  // Where a machine takes in what arrives. The worker's kernel does so while its process stands.
  Loop& KernelOf(Side side) { return side == kCoordinator ? coordinator_ : loop_; }

  SimLoop& loop_;
  Loop& coordinator_;
  Loop& worker_;
  Dice dice_;
  Trace& trace_;
  cluster::ControlLinkHandlers handlers_[2];
  std::function<void()> on_worker_down_;
  std::vector<v1::ControlMessage> early_;  // arrived before the coordinator had taken the hello
  bool alive_[2] = {true, true};
  absl::Time last_arrival_[2] = {absl::InfinitePast(), absl::InfinitePast()};
  absl::Time held_until_ = absl::InfinitePast();
  absl::Duration delay_max_ = absl::Milliseconds(2);
};

}  // namespace epic::sim
