// What a rank can do now, and how long it slept although it could do something.
#pragma once

#include <cstdint>

#include "absl/time/time.h"
#include "worker/exchange/message_exchange.h"
#include "worker/service/rank_service.h"
#include "worker/service/worker_service.h"

namespace epic::worker {

// Whether the rank's next turn would do something although nothing arrives. It asks every owner of
// work: the step under way, the rows to serve, the experts to load. A rank may sleep only while
// this is false.
bool CanGoOn(const WorkerService& sequences, const MessageExchange& exchange,
             const RankService& service);

// Measures the time that a rank slept although it had work. It does not ask CanGoOn, which it is to
// judge: if nothing arrived during a sleep and the turn after it did something, the turn could have
// done the same without the sleep.
//
//   meter.Sleep(clock.Now(), inputs);
//   loop.RunOnce(wait);
//   meter.Wake(clock.Now());
//   if (… something was done …) meter.Worked(inputs);
//
// `inputs` counts all that has arrived so far and may give the rank work. A plain object.
class SleepMeter {
 public:
  void Sleep(absl::Time now, int64_t inputs);
  // Without a sleep before it, the call does nothing.
  void Wake(absl::Time now);
  void Worked(int64_t inputs);

  // Since the object was made. It must be zero.
  absl::Duration asleep_with_work() const { return asleep_with_work_; }

 private:
  bool sleeps_ = false;
  absl::Time sleeps_since_;
  int64_t inputs_before_ = 0;
  absl::Duration last_sleep_;  // zero once it is judged
  absl::Duration asleep_with_work_;
};

}  // namespace epic::worker
