// The simulated control stream: messages arrive once and in order, late if the network is cut (real
// ones are resumed by number after a redial), until one end's life is over.
#pragma once

#include <functional>
#include <memory>

#include "base/sim_loop.h"
#include "cluster/control_link.h"
#include "tests/sim/dice.h"
#include "tests/sim/trace.h"

namespace epic::sim {

class ControlPair : public std::enable_shared_from_this<ControlPair> {
 public:
  enum Side { kCoordinator = 0, kWorker = 1 };

  // `coordinator` runs what arrives there.
  ControlPair(SimLoop& loop, Loop& coordinator, uint64_t seed, Trace& trace)
      : loop_(loop), coordinator_(coordinator), dice_(seed), trace_(trace) {}

  void SetHandlers(Side side, cluster::ControlLinkHandlers handlers) {
    handlers_[side] = std::move(handlers);
  }
  // The end's life is over when it is destroyed; the other's on_down follows.
  std::unique_ptr<cluster::ControlLink> NewEnd(Side side);
  // Nothing passes for so long.
  void Hold(absl::Duration lasts) { held_until_ = std::max(held_until_, loop_.Now() + lasts); }
  void set_delay_max(absl::Duration delay) { delay_max_ = delay; }

 private:
  class End;
  void Carry(Side from, v1::ControlMessage message);
  void Close(Side side);
  absl::Time Arrival(Side to);
  Loop& LoopOf(Side side) { return side == kCoordinator ? coordinator_ : loop_; }

  SimLoop& loop_;
  Loop& coordinator_;
  Dice dice_;
  Trace& trace_;
  cluster::ControlLinkHandlers handlers_[2];
  bool alive_[2] = {true, true};
  absl::Time last_arrival_[2] = {absl::InfinitePast(), absl::InfinitePast()};
  absl::Time held_until_ = absl::InfinitePast();
  absl::Duration delay_max_ = absl::Milliseconds(2);
};

}  // namespace epic::sim
