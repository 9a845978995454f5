// The compute threads of the CPU backend: few, persistent, one parallel region at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace epic::kernels {

class ThreadPool {
 public:
  // `threads` counts the caller of Run, who is thread 0. With `pin`, thread i > 0 stays on the i-th
  // of the cores this process may use.
  ThreadPool(int threads, bool pin);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Runs body(i) once for each i in [0, threads()) and returns when all have returned. Denormals
  // are flushed on the pool's own threads. Callers on several threads take turns; body must not
  // call Run.
  void Run(const std::function<void(int)>& body);

  // Cores that this process may use.
  static int AvailableCores();

 private:
  void Work(int index, bool pin);

  const int threads_;
  const int spins_max_;  // 0 where there are more threads than cores
  std::mutex run_mutex_;
  const std::function<void(int)>* body_ = nullptr;
  std::atomic<bool> stopping_ = false;
  alignas(64) std::atomic<uint32_t> epoch_ = 0;    // of regions begun
  alignas(64) std::atomic<uint32_t> pending_ = 0;  // workers still in this region
  std::vector<std::thread> workers_;
};

}  // namespace epic::kernels
