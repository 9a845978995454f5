// Mailbox: the way from other threads to an object on a loop, closed before that object goes.
#pragma once

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/env.h"

namespace epic::cluster {

// Thread-safe. Held by shared_ptr by all who post.
class Mailbox {
 public:
  explicit Mailbox(Loop& loop) : loop_(&loop) {}
  // False, and the task is gone, if the mailbox is closed.
  bool Post(Task task) {
    const absl::MutexLock lock(&mutex_);
    if (loop_ == nullptr) return false;
    loop_->Post(std::move(task));
    return true;
  }
  // The loop is not touched again. Tasks already posted still run.
  void Close() {
    const absl::MutexLock lock(&mutex_);
    loop_ = nullptr;
  }

 private:
  absl::Mutex mutex_;
  Loop* loop_ ABSL_GUARDED_BY(mutex_);  // null: closed
};

}  // namespace epic::cluster
