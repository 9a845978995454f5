// The real event loop: one epoll set with a mailbox (eventfd), timers and watched descriptors.
#pragma once

#include <map>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/env.h"
#include "base/epoll_set.h"
#include "base/unique_fd.h"

namespace epic {

// Someone who is told of news by memory that others write, and so must arm a bell before the loop
// sleeps. Called on the loop's thread.
class Sleeper {
 public:
  virtual ~Sleeper() = default;
  // The loop is about to wait. Returns the longest that it may; zero if there is work already.
  virtual absl::Duration BeforeSleep() = 0;
  // After every wait, also one of no time; `timed_out` if it slept and no descriptor ended it.
  virtual void AfterSleep(bool timed_out) = 0;
};

class EpollLoop : public Loop {
 public:
  explicit EpollLoop(Clock& clock);
  EpollLoop(const EpollLoop&) = delete;

  void Post(Task task) override;
  TimerId At(absl::Time when, Task task) override;
  void Cancel(TimerId timer) override;

  // Calls `ready` while `fd` is readable (level-triggered). Loop thread only. The descriptor stays
  // the caller's; Unwatch before closing it.
  void Watch(int fd, std::function<void()> ready);
  void Unwatch(int fd);

  // The loop has at most one sleeper; null takes it away. The sleeper must live until it is taken
  // away. Loop thread only.
  void SetSleeper(Sleeper* sleeper) { sleeper_ = sleeper; }

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
  EpollSet descriptors_;
  UniqueFd wake_;
  Sleeper* sleeper_ = nullptr;
  bool stopped_ = false;
  absl::Mutex mutex_;
  std::vector<Task> posted_ ABSL_GUARDED_BY(mutex_);
  TimerId next_timer_ = 1;
  std::map<std::pair<absl::Time, TimerId>, Task> timers_;
  std::unordered_map<TimerId, absl::Time> timer_times_;
};

}  // namespace epic
