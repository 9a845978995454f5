// SleepMeter: the time that a rank slept although it had work. It must be zero.
//
//   meter.Sleep(clock.Now(), inputs);
//   loop.RunOnce(wait);
//   meter.Wake(clock.Now());
//   if (… something was done …) meter.Worked(inputs);
//
// The meter does not ask whether the rank had work, for that question is what it judges: if nothing
// arrived during a sleep and the turn after it did something, the turn could have done the same
// without the sleep. `inputs` counts all that has arrived so far and may give the rank work.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace epic::worker {

// A plain object, one thread.
class SleepMeter {
 public:
  void Sleep(absl::Time now, int64_t inputs);
  // Without a sleep before it, the call does nothing.
  void Wake(absl::Time now);
  void Worked(int64_t inputs);

  // Since the object was made.
  absl::Duration asleep_with_work() const { return asleep_with_work_; }

 private:
  bool sleeps_ = false;
  absl::Time sleeps_since_;
  int64_t inputs_before_ = 0;
  absl::Duration last_sleep_;  // zero once it is judged
  absl::Duration asleep_with_work_;
};

}  // namespace epic::worker
