#include "kernels/threads/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <xmmintrin.h>

#include <numeric>
#include <set>

namespace epic::kernels {
namespace {

TEST(ThreadPool, RunsEachIndexOnceInEveryRegion) {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads, false);
    std::vector<int> calls(threads, 0);
    for (int region = 0; region < 500; ++region) {
      pool.Run([&](int thread) { ++calls[thread]; });
    }
    EXPECT_EQ(calls, std::vector<int>(threads, 500));
  }
}

TEST(ThreadPool, WritesOfARegionAreSeenByTheCallerAndByTheNextRegion) {
  ThreadPool pool(4, false);
  std::vector<int64_t> values(4, 1);
  int64_t total = 0;
  for (int region = 0; region < 200; ++region) {
    pool.Run([&](int thread) { values[thread] = total + thread; });
    total = std::accumulate(values.begin(), values.end(), int64_t{0}) % 1000003;
  }
  int64_t expected = 0;
  for (int region = 0; region < 200; ++region) expected = (4 * expected + 6) % 1000003;
  EXPECT_EQ(total, expected);
}

TEST(ThreadPool, APhaseBeginsWhenTheOneBeforeHasEndedOnEveryThread) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads, false);
    std::vector<int64_t> values(threads, 1);
    std::vector<int64_t> sums(threads, 0);
    const std::function<void(int)> phases[] = {
        [&](int thread) {
          sums[thread] = std::accumulate(values.begin(), values.end(), 0) % 10007;
        },
        [&](int thread) { values[thread] = sums[(thread + 1) % threads] + thread; },
        [&](int thread) { values[thread] += thread; }};
    for (int region = 0; region < 300; ++region) pool.RunPhases(phases);
    std::vector<int64_t> expected(threads, 1);
    for (int region = 0; region < 300; ++region) {
      const int64_t sum = std::accumulate(expected.begin(), expected.end(), 0) % 10007;
      for (int i = 0; i < threads; ++i) expected[i] = sum + 2 * i;
    }
    EXPECT_EQ(values, expected);
    EXPECT_EQ(pool.regions(), threads == 1 ? 0 : 300);
  }
}

TEST(ThreadPool, EveryTaskRunsOnceWithDenormalsFlushed) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads, false);
    for (const int count : {0, 1, 2, 100}) {
      std::vector<int> calls(count, 0);
      pool.ForEach(count, [&](int i) { calls[i] += (_mm_getcsr() & 0x8040u) == 0x8040u ? 1 : 9; });
      EXPECT_EQ(calls, std::vector<int>(count, 1));
    }
    EXPECT_NE(_mm_getcsr() & 0x8040u, 0x8040u);
  }
}

TEST(ThreadPool, PinsThreadsToCoresWhereTheyAreEnough) {
  std::thread([] {  // the caller is pinned too
    ThreadPool pool(ThreadPool::AvailableCores(), true);
    EXPECT_TRUE(pool.pinned());
    std::vector<int> cores(pool.threads());
    std::vector<int> allowed(pool.threads());
    pool.Run([&](int thread) {
      allowed[thread] = ThreadPool::AvailableCores();
      cores[thread] = sched_getcpu();
    });
    EXPECT_EQ(allowed, std::vector<int>(pool.threads(), 1));
    EXPECT_EQ(std::set<int>(cores.begin(), cores.end()).size(), cores.size());
    EXPECT_FALSE(ThreadPool(pool.threads() + 1, true).pinned());
  })
      .join();
}

TEST(ThreadPool, CallersOnSeveralThreadsTakeTurns) {
  ThreadPool pool(3, false);
  int inside = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([&] {
      for (int region = 0; region < 100; ++region) {
        pool.Run([&](int thread) {
          if (thread == 0) ++inside;
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(inside, 300);
}

TEST(ThreadPool, BreathesOnTheCallingThreadAlone) {
  ThreadPool pool(3, false);
  pool.Run([&](int thread) { pool.Breathe(thread); });
  int breaths = 0;
  const auto caller = std::this_thread::get_id();
  pool.SetInterlude([&] {
    ++breaths;
    EXPECT_EQ(std::this_thread::get_id(), caller);
  });
  pool.Run([&](int thread) {
    for (int i = 0; i < 10; ++i) pool.Breathe(thread);
  });
  EXPECT_EQ(breaths, 10);
}

TEST(ThreadPool, FlushesDenormalsOnItsOwnThreads) {
  ThreadPool pool(3, true);
  std::vector<unsigned> state(3);
  pool.Run([&](int thread) { state[thread] = _mm_getcsr() & 0x8040u; });
  EXPECT_EQ(state[1], 0x8040u);
  EXPECT_EQ(state[2], 0x8040u);
}

}  // namespace
}  // namespace epic::kernels
