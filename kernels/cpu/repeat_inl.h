// Loops that are unrolled before anything else, so that arrays indexed by them live in registers.
// Included by files compiled for an instruction set.
#pragma once

namespace epic::kernels {
namespace {

template <int kValue>
struct Index {
  static constexpr int value = kValue;
};

// Calls body(Index<0>()), …, body(Index<kCount - 1>()).
template <int kCount, int kFrom = 0, class Body>
[[gnu::always_inline]] inline void Repeat(const Body& body) {
  if constexpr (kFrom < kCount) {
    body(Index<kFrom>());
    Repeat<kCount, kFrom + 1>(body);
  }
}

}  // namespace
}  // namespace epic::kernels
