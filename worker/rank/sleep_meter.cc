#include "worker/rank/sleep_meter.h"

#include <utility>

#include "base/check.h"

namespace epic::worker {

void SleepMeter::Sleep(absl::Time now, int64_t inputs) {
  CHECK(!sleeps_);
  sleeps_ = true;
  sleeps_since_ = now;
  inputs_before_ = inputs;
}

void SleepMeter::Wake(absl::Time now) {
  last_sleep_ = std::exchange(sleeps_, false) ? now - sleeps_since_ : absl::ZeroDuration();
}

void SleepMeter::Worked(int64_t inputs) {
  CHECK(!sleeps_);
  CHECK_GE(inputs, inputs_before_);
  // A turn does several pieces of work; the sleep before it counts once.
  const absl::Duration slept = std::exchange(last_sleep_, absl::ZeroDuration());
  if (inputs == inputs_before_) asleep_with_work_ += slept;
}

}  // namespace epic::worker
