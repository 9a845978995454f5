// TaskPool: a few threads that run tasks. For the core's listeners, which may only hand over.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "base/env.h"

namespace epic::coordinator {

// Thread-safe.
class TaskPool {
 public:
  TaskPool(Threads& threads, const std::string& name, int thread_count);
  // Waits for the running tasks; drops the others.
  ~TaskPool();
  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  // Tasks begin in order and run side by side.
  void Post(Task task);

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  bool stopped_ = false;
  std::vector<std::unique_ptr<Threads::Handle>> handles_;
};

}  // namespace epic::coordinator
