// ExchangePolicy: how a rank takes part in a world: how its rows reach the experts, what it does
// for other ranks, and when it may end. MessagePolicy (message_policy.h) exchanges messages with
// ranks that go on by themselves; LockStepPolicy (lock_step_policy.h) steps together with the ranks
// of an epoch. The Rank (rank.h) has all that they share: sequences, the link, reports, the end.
#pragma once

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/control_link.h"
#include "proto/epic/v1/worker.pb.h"

namespace epic::worker {

class Rank;

// One thread, the rank's loop. Called by the Rank alone.
class ExchangePolicy {
 public:
  virtual ~ExchangePolicy() = default;

  // Once, before all others. The rank outlives all calls.
  virtual void Attach(Rank& rank) {}

  // Adds what the coordinator must know of the exchange when this rank joins.
  virtual void Introduce(v1::WorkerIdentity& identity) const {}
  // A link to a coordinator that has not welcomed this generation yet; null: none for now.
  virtual void Connect(cluster::ControlLink* link) = 0;
  // False: the message is not for the exchange.
  virtual bool OnMessage(const v1::ControlMessage& message) = 0;

  // Does one piece of the exchange's own work, and never waits. True: something was done. An error
  // ends the rank.
  virtual absl::StatusOr<bool> Turn() = 0;
  // Whether Turn would do something although nothing arrives.
  virtual bool CanGoOn() const = 0;
  // Whether an answer that a step waits for is here, so that the step can go on.
  virtual bool HasReadyTicket() const = 0;
  // How long the rank may sleep at most while nothing can go on.
  virtual absl::Duration wait_max() const = 0;
  // Whether news wakes the loop up. If not, the rank finds them when it looks again, after
  // wait_max(), and its sleeps are not judged.
  virtual bool news_wakes_the_loop() const { return true; }
  // All that has arrived from other ranks so far.
  virtual int64_t arrivals() const { return 0; }

  // Whether other ranks may wait for this one while it computes a step of its own.
  virtual bool serves_others() const { return false; }
  // Whether it computes something apart from steps of this rank.
  virtual bool computing() const { return false; }
  // Adds what the exchange does and has done. It sets the activity only to WAITING or LOADING.
  virtual void FillReport(v1::RankReport& report) const = 0;

  // This rank has no sequences and will have none any more. Called in every turn from then on.
  virtual void End() {}
  // Whether the other ranks can do without this one.
  virtual bool MayEnd() const { return true; }
};

}  // namespace epic::worker
