// How the inner loops of products are driven. Included by files compiled for an instruction set.
#pragma once

#include <cstdint>

namespace epic::kernels {
namespace {

// How far ahead of its loads each of `streams` streams is fetched that a thread reads side by side:
// together they hide the memory's latency. Eight times 2 KiB, half of the first cache, evicted each
// other there: a row took up to a half longer.
constexpr int64_t AheadBytes(int streams) {
  constexpr int64_t kAll = 2048, kEachMin = 256;
  return kAll / streams > kEachMin ? kAll / streams / 64 * 64 : kEachMin;
}

template <int kValue>
struct Index {
  static constexpr int value = kValue;
};

// Calls body(Index<0>()), …, body(Index<kCount - 1>()): a loop that is unrolled before anything
// else, so that arrays indexed by it live in registers.
template <int kCount, int kFrom = 0, class Body>
[[gnu::always_inline]] inline void Repeat(const Body& body) {
  if constexpr (kFrom < kCount) {
    body(Index<kFrom>());
    Repeat<kCount, kFrom + 1>(body);
  }
}

// Calls body(Index<count>()); count is 1 .. kMost.
template <int kMost, class Body>
void WithCount(int64_t count, const Body& body) {
  // A count becomes a constant of the compiler here, so that every number of rows has a loop of its
  // own.
  if constexpr (kMost > 1) {
    if (count < kMost) return WithCount<kMost - 1>(count, body);
  }
  body(Index<kMost>());
}

// Cuts rows [0, m) into as few passes of at most kMost as there can be, of equal size or one apart:
// body(Index<rows>(), first row).
template <int kMost, class Body>
void ForRowPasses(int64_t m, const Body& body) {
  int64_t row = 0;
  for (int64_t passes = (m + kMost - 1) / kMost; passes > 0; --passes) {
    // The quotient is rounded down, so passes that are one row larger come last.
    const int64_t rows = (m - row) / passes;
    WithCount<kMost>(rows, [&](auto count) { body(count, row); });
    row += rows;
  }
}

// Visits panels [begin, end) kPanels at a time, each of which stands in its own stretch of
// consecutive panels, so that as many streams are read: tile(Index<kPanels>(), first panel, how far
// they are apart). Panels left over go to kNarrower, which ends with 1.
template <int kPanels, int... kNarrower, class Tile>
void SweepPanels(int64_t begin, int64_t end, const Tile& tile) {
  const int64_t apart = (end - begin) / kPanels;
  for (int64_t i = begin; i < begin + apart; ++i) tile(Index<kPanels>(), i, apart);
  if constexpr (sizeof...(kNarrower) > 0) {
    SweepPanels<kNarrower...>(begin + apart * kPanels, end, tile);
  }
}

}  // namespace
}  // namespace epic::kernels
