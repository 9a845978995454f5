#include "coordinator/frontend/task_pool.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace epic::coordinator {

TaskPool::TaskPool(Threads& threads, const std::string& name, int thread_count) {
  CHECK_GT(thread_count, 0);
  // A thread may run at once, so the members that it uses are declared before the handles.
  for (int i = 0; i < thread_count; ++i) {
    handles_.push_back(threads.Start(absl::StrCat(name, " ", i), [this] { Run(); }));
  }
}

TaskPool::~TaskPool() {
  {
    const absl::MutexLock lock(&mutex_);
    stopped_ = true;
  }
  // Joins, without the lock: a thread needs it to see that the pool has stopped.
  handles_.clear();
}

void TaskPool::Post(Task task) {
  const absl::MutexLock lock(&mutex_);
  tasks_.push_back(std::move(task));
}

void TaskPool::Run() {
  for (;;) {
    Task task;
    {
      const absl::MutexLock lock(&mutex_, absl::Condition(this, &TaskPool::HasNews));
      // The end goes before the queue: tasks that have not begun are dropped.
      if (stopped_) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace epic::coordinator
