// The compute threads of the CPU backend: few, persistent, one parallel region at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace epic::kernels {

class ThreadPool {
 public:
  // `threads` counts the caller of Run, who is thread 0. With `pin`, thread i stays on the i-th of
  // the cores that the constructing thread may use, if they are enough; callers then stay on the
  // first one from their first Run on. Waiting threads spin a little before they sleep, unless
  // `pools` such pools on these cores have more threads than there are cores.
  ThreadPool(int threads, bool pin, int pools = 1);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  bool pinned() const { return pin_; }
  // Parallel regions begun so far.
  int64_t regions() const { return regions_; }

  // Runs body(i) once for each i in [0, threads()) and returns when all have returned. Denormals
  // are flushed on the pool's own threads. Callers on several threads take turns; body must not
  // call Run.
  void Run(const std::function<void(int)>& body) { RunPhases({&body, 1}); }
  // The same for several bodies in one region: each begins when the one before has returned on
  // every thread.
  void RunPhases(std::span<const std::function<void(int)>> bodies);

  // Runs task(0) .. task(count − 1), each as soon as a thread is free, with denormals flushed.
  void ForEach(int count, const std::function<void(int)>& task);

  // `interlude` is called by Breathe on thread 0; empty: nothing is.
  void SetInterlude(std::function<void()> interlude) { interlude_ = std::move(interlude); }
  // Bodies call it between pieces of work of some milliseconds.
  void Breathe(int thread) const {
    if (thread == 0 && interlude_) interlude_();
  }

  // Cores that this process may use.
  static int AvailableCores();

 private:
  class Waiter;

  void Work(int index);
  void RunBodies(int index, const Waiter& waiter);
  void PinCaller();

  const int threads_;
  const std::vector<int> cores_;  // that the constructing thread may use
  const bool pin_;
  const uint64_t spin_cycles_;
  std::mutex run_mutex_;
  std::thread::id pinned_caller_;
  std::function<void()> interlude_;
  int64_t regions_ = 0;
  std::span<const std::function<void(int)>> bodies_;
  std::atomic<bool> stopping_ = false;
  alignas(64) std::atomic<uint32_t> epoch_ = 0;    // of regions begun
  alignas(64) std::atomic<uint32_t> pending_ = 0;  // threads still in this body
  alignas(64) std::atomic<uint32_t> turn_ = 0;     // of bodies ended
  std::unique_ptr<Waiter> caller_waiter_;
  std::vector<std::thread> workers_;
};

}  // namespace epic::kernels
