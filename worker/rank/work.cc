#include "worker/rank/work.h"

#include <utility>

#include "base/check.h"
#include "base/mutant.h"

namespace epic::worker {

bool CanGoOn(const WorkerService& sequences, const MessageExchange& exchange,
             const RankService& service) {
  // A step that waits learns of its answers only when it is asked again. The last of them may have
  // been taken in, or computed here, by Serve: after the step was asked and before the rank sleeps.
  // Nothing would arrive then to wake it up.
  const bool answered = exchange.has_ready_ticket() && !EPIC_MUTANT("ranks_sleep_on_answers");
  const bool stepping = sequences.busy() && (!sequences.waiting() || answered);
  return stepping || exchange.serving() || service.loading();
}

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
  const absl::Duration slept = std::exchange(last_sleep_, absl::ZeroDuration());
  if (inputs == inputs_before_) asleep_with_work_ += slept;
}

}  // namespace epic::worker
