#include "worker/rank/work_ticks.h"

#include <algorithm>

namespace epic::worker {

void WorkTicks::Tick(bool idle) {
  const absl::Time now = clock_.Now();
  // A gap that begins in idleness is a sleep. If it counted, a rank that hangs could go unnoticed
  // for 8 times as long (rule 4.3).
  if (!idle && count_ > 0) {
    if (gaps_.size() < kGaps) gaps_.emplace_back();
    gaps_[next_gap_] = now - last_;
    next_gap_ = (next_gap_ + 1) % kGaps;
  }
  ++count_;
  last_ = now;
}

absl::Duration WorkTicks::GapP99() const {
  if (gaps_.empty()) return absl::ZeroDuration();
  // A copy: the ring must stay in the order of age.
  std::vector<absl::Duration> sorted = gaps_;
  const auto at = sorted.begin() + static_cast<ptrdiff_t>(sorted.size() * 99 / 100);
  std::nth_element(sorted.begin(), at, sorted.end());
  return *at;
}

}  // namespace epic::worker
