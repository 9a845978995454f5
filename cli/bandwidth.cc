#include "cli/bandwidth.h"

#include <emmintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <thread>
#include <vector>

namespace epic::cli {
namespace {

// A share is a multiple of kStreamsMax lines, so that each stretch of each reader is a whole number
// of lines.
constexpr int64_t kStreamsMax = 16;
constexpr int kPassesEach = 4;
constexpr int64_t kLine = 64;

using Reader = uint32_t (*)(const std::byte* from, int64_t bytes);

// The xor of `bytes` bytes, read in kStreams concurrent stretches.
template <int64_t kStreams>
uint32_t Read(const std::byte* from, int64_t bytes) {
  const int64_t stretch = bytes / kStreams;
  __m128i sum = _mm_setzero_si128();
  for (int64_t i = 0; i < stretch; i += kLine) {
    for (int64_t s = 0; s < kStreams; ++s) {
      const auto* line = reinterpret_cast<const __m128i*>(from + s * stretch + i);
      // The prefetch reaches 2048 bytes ahead in each stream. It may pass the end of the buffer: a
      // prefetch never faults.
      _mm_prefetch(reinterpret_cast<const char*>(line) + 2048, _MM_HINT_T0);
      sum = _mm_xor_si128(sum, _mm_xor_si128(line[0], line[1]));
      sum = _mm_xor_si128(sum, _mm_xor_si128(line[2], line[3]));
    }
  }
  return static_cast<uint32_t>(_mm_cvtsi128_si32(sum));
}

// CPUs differ in how many streams their prefetchers follow, so no single number gives a ceiling on
// all of them: the best pass of all counts.
constexpr Reader kReaders[] = {Read<1>, Read<2>, Read<4>, Read<8>, Read<kStreamsMax>};
constexpr int kPasses = kPassesEach * static_cast<int>(std::size(kReaders));

double BestPassBytesPerSecond(std::byte* buffer, int64_t share, int threads) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  Clock::time_point start;
  int turn = 0;
  // The sums go to a volatile, or the compiler could leave out the reading.
  volatile uint32_t sink = 0;
  // Even turns begin a pass, and odd ones end it. The first pass only touches the pages. This
  // function runs on one thread at a time while all others wait, so what it uses needs no lock.
  std::barrier barrier(threads, [&]() noexcept {
    const auto now = Clock::now();
    if (turn % 2 == 1 && turn > 1) {
      const double seconds = std::chrono::duration<double>(now - start).count();
      best = std::max(best, static_cast<double>(share) * threads / seconds);
    }
    start = now;
    ++turn;
  });
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      std::byte* mine = buffer + t * share;
      for (int pass = 0; pass <= kPasses; ++pass) {
        barrier.arrive_and_wait();
        if (pass == 0) {
          // Each thread writes its own share first: the kernel places a page at the memory node of
          // the thread that touches it, and only near memory gives the ceiling.
          std::memset(mine, 0x21 + t, share);
        } else {
          sink = kReaders[pass % std::size(kReaders)](mine, share);
        }
        barrier.arrive_and_wait();
      }
    });
  }
  for (std::thread& thread : pool) thread.join();
  return best;
}

}  // namespace

double MemoryBandwidth(int threads, int64_t bytes) {
  const int64_t share =
      std::max<int64_t>(1, bytes / threads / (kStreamsMax * kLine)) * kStreamsMax * kLine;
  void* buffer =
      mmap(nullptr, share * threads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (buffer == MAP_FAILED) return 0;
  // With small pages the misses of the TLB would be measured as well, and the result would be no
  // ceiling.
  madvise(buffer, share * threads, MADV_HUGEPAGE);
  const double speed = BestPassBytesPerSecond(static_cast<std::byte*>(buffer), share, threads);
  munmap(buffer, share * threads);
  return speed;
}

}  // namespace epic::cli
