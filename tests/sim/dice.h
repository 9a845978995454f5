// Dice: the draws of a scenario.
#pragma once

#include <cstdint>

#include "absl/time/time.h"
#include "base/sim_loop.h"

namespace epic::sim {

class Dice {
 public:
  explicit Dice(uint64_t seed) : random_(seed) {}

  uint64_t Next() { return random_.Next(); }
  // In [low, high].
  int Between(int low, int high) {
    return low + static_cast<int>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  absl::Duration Between(absl::Duration low, absl::Duration high) {
    const int64_t span = absl::ToInt64Microseconds(high - low) + 1;
    return low + absl::Microseconds(static_cast<int64_t>(Next() % static_cast<uint64_t>(span)));
  }
  // Once in `n`.
  bool Once(int n) { return Between(1, n) == 1; }

 private:
  SeededRandom random_;
};

}  // namespace epic::sim
