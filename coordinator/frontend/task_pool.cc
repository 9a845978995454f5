#include "coordinator/frontend/task_pool.h"

#include "absl/strings/str_cat.h"

namespace epic::coordinator {

TaskPool::TaskPool(Threads& threads, const std::string& name, int thread_count) {
  for (int i = 0; i < thread_count; ++i) {
    handles_.push_back(threads.Start(absl::StrCat(name, " ", i), [this] { Run(); }));
  }
}

TaskPool::~TaskPool() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  handles_.clear();
}

void TaskPool::Post(Task task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  changed_.notify_one();
}

void TaskPool::Run() {
  for (;;) {
    Task task;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopped_ || !tasks_.empty(); });
      if (stopped_) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace epic::coordinator
