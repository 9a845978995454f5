// Trace: all that happens in a simulated world, as one number. Two runs of a seed agree in it.
#pragma once

#include <cstdint>

#include "worker/testing/mix.h"

namespace epic::sim {

class Trace {
 public:
  void Add(uint64_t value) {
    hash_ = worker::Mix(hash_, value);
    ++count_;
  }
  uint64_t hash() const { return hash_; }
  int64_t count() const { return count_; }

 private:
  uint64_t hash_ = 0;
  int64_t count_ = 0;
};

}  // namespace epic::sim
