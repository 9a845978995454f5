// The compute threads of a backend: few, persistent, one parallel region at a time. The CPU backend
// computes on them; the CUDA backend has some for work on the host (Backend::ForEach).
//
// kernels/ builds alone, so these threads are its own and do not come from base/env.h.
//
//   ThreadPool pool(8, /*pin=*/false);
//   pool.Run([&](int thread) { Sum(parts[thread]); });   // on all 8, the caller being thread 0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "kernels/mutex.h"

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
  // every thread. A region costs some microseconds of waking and waiting, a further body less.
  void RunPhases(std::span<const std::function<void(int)>> bodies);

  // Runs task(0) .. task(count − 1), each as soon as a thread is free, with denormals flushed.
  void ForEach(int count, const std::function<void(int)>& task);

  // Breathe calls `interlude` on thread 0; an empty one ends that. Not while a region runs.
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
  void PinCaller() KERNEL_REQUIRES(run_mutex_);

  const int threads_;
  const std::vector<int> cores_;  // that the constructing thread may use
  const bool pin_;
  const uint64_t spin_cycles_;
  Mutex run_mutex_;  // the turns of callers
  std::thread::id pinned_caller_ KERNEL_GUARDED_BY(run_mutex_);
  std::function<void()> interlude_;
  std::atomic<int64_t> regions_ = 0;
  // Written before epoch_ is raised and read by those who saw it raised, so no lock guards it.
  std::span<const std::function<void(int)>> bodies_;
  std::atomic<bool> stopping_ = false;
  alignas(64) std::atomic<uint32_t> epoch_ = 0;    // of regions begun
  alignas(64) std::atomic<uint32_t> pending_ = 0;  // threads still in this body
  alignas(64) std::atomic<uint32_t> turn_ = 0;     // of bodies ended
  std::unique_ptr<Waiter> caller_waiter_;
  std::vector<std::thread> workers_;
};

}  // namespace epic::kernels
