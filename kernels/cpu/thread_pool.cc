#include "kernels/cpu/thread_pool.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>

#include "kernels/flush_denormals.h"

namespace epic::kernels {
namespace {

constexpr int kSpinsMax = 2000;  // some tens of microseconds
constexpr int kSpinsMin = 16;

cpu_set_t ProcessCores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0) CPU_SET(0, &cores);
  return cores;
}

void PinToCore(int index) {
  const cpu_set_t cores = ProcessCores();
  int left = index % CPU_COUNT(&cores);
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &cores) || left-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
    return;
  }
}

// Waits until `value` differs from `old`: spins a little, then sleeps. The budget grows while
// spinning pays and shrinks while it does not.
class Waiter {
 public:
  explicit Waiter(int spins_max) : spins_max_(spins_max), spins_(spins_max) {}

  uint32_t AwaitChange(const std::atomic<uint32_t>& value, uint32_t old) {
    for (int i = 0; i < spins_; ++i) {
      const uint32_t now = value.load(std::memory_order_acquire);
      if (now != old) {
        spins_ = std::min(spins_max_, spins_ * 2 + kSpinsMin);
        return now;
      }
      _mm_pause();
    }
    spins_ = std::min(spins_max_, std::max(kSpinsMin, spins_ / 2));
    value.wait(old, std::memory_order_acquire);
    return value.load(std::memory_order_acquire);
  }

 private:
  int spins_max_;
  int spins_;
};

}  // namespace

int ThreadPool::AvailableCores() {
  const cpu_set_t cores = ProcessCores();
  return std::max(1, CPU_COUNT(&cores));
}

ThreadPool::ThreadPool(int threads, bool pin)
    : threads_(std::max(1, threads)), spins_max_(threads_ <= AvailableCores() ? kSpinsMax : 0) {
  for (int i = 1; i < threads_; ++i) {
    workers_.emplace_back([this, i, pin] { Work(i, pin); });
  }
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Work(int index, bool pin) {
  if (pin) PinToCore(index);
  const ScopedFlushDenormals flush;
  Waiter waiter(spins_max_);
  uint32_t seen = 0;
  while (true) {
    seen = waiter.AwaitChange(epoch_, seen);
    if (stopping_.load(std::memory_order_relaxed)) return;
    (*body_)(index);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
  }
}

void ThreadPool::Run(const std::function<void(int)>& body) {
  const std::lock_guard<std::mutex> lock(run_mutex_);
  if (threads_ == 1) return body(0);
  body_ = &body;
  pending_.store(static_cast<uint32_t>(threads_ - 1), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  body(0);
  Waiter waiter(spins_max_);
  uint32_t left = pending_.load(std::memory_order_acquire);
  while (left != 0) left = waiter.AwaitChange(pending_, left);
}

}  // namespace epic::kernels
