#include "kernels/threads/thread_pool.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>

#include "kernels/check.h"
#include "kernels/flush_denormals.h"

namespace epic::kernels {
namespace {

// Cycles of the time stamp counter, about 100 µs: what it takes to wake a thread. Shorter spins are
// a trap: two threads that have once fallen asleep wake each other too late for either to find the
// other awake, region after region. Measured with shorter ones: steps of tiny-r1 of 1.8 to 2.3 ms
// in place of 0.17 ms, for a part of half of all runs.
constexpr uint64_t kSpinCycles = 300'000;

std::vector<int> CoresOfThisThread() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) CPU_SET(0, &set);
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

void PinTo(int core) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
}

}  // namespace

// Waits until a value changes: spins a little, then sleeps.
class ThreadPool::Waiter {
 public:
  explicit Waiter(uint64_t spin_cycles) : spin_cycles_(spin_cycles) {}

  // Returns what `value` is once it is not `old`.
  uint32_t AwaitChange(const std::atomic<uint32_t>& value, uint32_t old) const {
    const uint64_t begin = __rdtsc();
    do {
      const uint32_t now = value.load(std::memory_order_acquire);
      if (now != old) return now;
      _mm_pause();
    } while (__rdtsc() - begin < spin_cycles_);
    value.wait(old, std::memory_order_acquire);
    return value.load(std::memory_order_acquire);
  }

 private:
  const uint64_t spin_cycles_;
};

int ThreadPool::AvailableCores() { return static_cast<int>(CoresOfThisThread().size()); }

ThreadPool::ThreadPool(int threads, bool pin, int pools)
    : threads_(std::max(1, threads)),
      cores_(CoresOfThisThread()),
      // Fewer cores than threads: pinned threads would wait for each other on one core.
      pin_(pin && threads_ <= static_cast<int>(cores_.size())),
      spin_cycles_(threads_ * pools <= static_cast<int>(cores_.size()) ? kSpinCycles : 0),
      caller_waiter_(std::make_unique<Waiter>(spin_cycles_)) {
  for (int i = 1; i < threads_; ++i) {
    workers_.emplace_back([this, i] { Work(i); });
  }
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Work(int index) {
  if (pin_) PinTo(cores_[index]);
  const ScopedFlushDenormals flush;
  const Waiter waiter(spin_cycles_);
  uint32_t seen = 0;
  while (true) {
    seen = waiter.AwaitChange(epoch_, seen);
    if (stopping_.load(std::memory_order_relaxed)) return;
    RunBodies(index, waiter);
  }
}

// The last thread to end a body opens the next one. pending_ is full again before turn_ moves, so a
// fast thread that ends the next body at once counts down from the right number. At the end of the
// last body only the caller waits: a pool thread goes back to wait for an epoch, which the caller
// cannot raise before every thread has counted down.
void ThreadPool::RunBodies(int index, const Waiter& waiter) {
  const std::span<const std::function<void(int)>> bodies = bodies_;
  uint32_t turn = turn_.load(std::memory_order_relaxed);
  for (size_t i = 0; i < bodies.size(); ++i) {
    bodies[i](index);
    const bool last = i + 1 == bodies.size();
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      pending_.store(static_cast<uint32_t>(threads_), std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      turn_.notify_all();
    } else if (!last || index == 0) {
      waiter.AwaitChange(turn_, turn);
    }
    ++turn;
  }
}

void ThreadPool::ForEach(int count, const std::function<void(int)>& task) {
  KERNEL_CHECK_GE(count, 0);
  std::atomic<int> next = 0;
  Run([&](int) {
    const ScopedFlushDenormals flush;
    for (int i = next++; i < count; i = next++) task(i);
  });
}

void ThreadPool::PinCaller() {
  if (!pin_ || pinned_caller_ == std::this_thread::get_id()) return;
  PinTo(cores_[0]);
  pinned_caller_ = std::this_thread::get_id();
}

void ThreadPool::RunPhases(std::span<const std::function<void(int)>> bodies) {
  KERNEL_CHECK(!bodies.empty());
  const MutexLock lock(run_mutex_);
  PinCaller();
  if (threads_ == 1) {
    for (const auto& body : bodies) body(0);
    return;
  }
  ++regions_;
  bodies_ = bodies;
  pending_.store(static_cast<uint32_t>(threads_), std::memory_order_relaxed);
  // Releases bodies_ and pending_ to the threads that see the new epoch.
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  RunBodies(0, *caller_waiter_);
}

}  // namespace epic::kernels
