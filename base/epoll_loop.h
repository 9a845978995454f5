// The real event loop: one epoll set with a mailbox (eventfd), timers and watched descriptors.
#pragma once

#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "base/env.h"

namespace epic {

class EpollLoop : public Loop {
 public:
  explicit EpollLoop(Clock& clock);
  ~EpollLoop() override;
  EpollLoop(const EpollLoop&) = delete;

  void Post(Task task) override;
  TimerId At(absl::Time when, Task task) override;
  void Cancel(TimerId timer) override;

  // Calls `ready` while `fd` is readable (level-triggered). Loop thread only. The descriptor stays
  // the caller's; Unwatch before closing it.
  void Watch(int fd, std::function<void()> ready);
  void Unwatch(int fd);

  // Runs until Stop; the calling thread is the loop's thread.
  void Run();
  // Runs what is ready, waiting at most `wait` for it. For a thread that has work of its own.
  void RunOnce(absl::Duration wait);
  // Ends Run after the tasks already posted. Any thread may call.
  void Stop();

 private:
  void RunPosted();
  void RunTimers();
  absl::Duration UntilNextTimer() const;

  Clock& clock_;
  int epoll_fd_ = -1;
  int wake_fd_ = -1;
  bool stopped_ = false;
  std::mutex mutex_;  // guards posted_
  std::vector<Task> posted_;
  TimerId next_timer_ = 1;
  std::map<std::pair<absl::Time, TimerId>, Task> timers_;
  std::unordered_map<TimerId, absl::Time> timer_times_;
  std::unordered_map<int, std::function<void()>> watched_;
};

}  // namespace epic
