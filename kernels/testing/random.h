// Reproducible numbers for tests.
#pragma once

#include <cstdint>

namespace epic::kernels {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}

  uint64_t Next() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // In [low, high].
  int Integer(int low, int high) {
    return low + static_cast<int>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  // In [-range, range).
  float Real(float range) { return (static_cast<float>(Next() >> 40) * 0x1p-23f - 1.0f) * range; }

 private:
  uint64_t state_;
};

}  // namespace epic::kernels
