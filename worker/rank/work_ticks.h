// WorkTicks: when a rank's work went on: a count that rises with each turn, and how long the turns
// took. The coordinator takes a rank whose count stands still for one that hangs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "base/env.h"

namespace epic::worker {

// A plain object, one thread.
class WorkTicks {
 public:
  explicit WorkTicks(const Clock& clock) : clock_(clock) {}

  // A turn begins, with the one before it ended; `idle`: there was nothing to do before.
  void Tick(bool idle);
  uint64_t count() const { return count_; }
  // The 99th percentile of the last kGaps turns.
  absl::Duration GapP99() const;

 private:
  static constexpr size_t kGaps = 256;
  const Clock& clock_;
  uint64_t count_ = 0;
  absl::Time last_ = absl::InfinitePast();
  std::vector<absl::Duration> gaps_;
  size_t next_gap_ = 0;
};

}  // namespace epic::worker
