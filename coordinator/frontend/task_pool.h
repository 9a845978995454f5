// TaskPool: a few threads that run tasks. For the core's listeners, which may only hand over.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
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
  // What a thread waits for.
  bool HasNews() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopped_ || !tasks_.empty(); }

  absl::Mutex mutex_;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::unique_ptr<Threads::Handle>> handles_;
};

}  // namespace epic::coordinator
