// Mailbox: the way from other threads to an object on a loop, closed before that object goes.
#pragma once

#include <mutex>
#include <utility>

#include "base/env.h"

namespace epic::cluster {

// Thread-safe. Held by shared_ptr by all who post.
class Mailbox {
 public:
  explicit Mailbox(Loop& loop) : loop_(&loop) {}
  // False, and the task is gone, if the mailbox is closed.
  bool Post(Task task) {
    const std::lock_guard lock(mutex_);
    if (loop_ == nullptr) return false;
    loop_->Post(std::move(task));
    return true;
  }
  // The loop is not touched again. Tasks already posted still run.
  void Close() {
    const std::lock_guard lock(mutex_);
    loop_ = nullptr;
  }

 private:
  std::mutex mutex_;
  Loop* loop_;
};

}  // namespace epic::cluster
