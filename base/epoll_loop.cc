#include "base/epoll_loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace epic {

EpollLoop::EpollLoop(Clock& clock) : clock_(clock), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  CHECK(wake_.valid()) << std::strerror(errno);
  Watch(wake_.get(), [this] {
    uint64_t count;
    while (read(wake_.get(), &count, sizeof(count)) > 0) {
    }
  });
}

void EpollLoop::Post(Task task) {
  bool first;
  {
    const absl::MutexLock lock(&mutex_);
    // One ring for all that is posted until the loop takes it: a ring is a system call.
    first = posted_.empty();
    posted_.push_back(std::move(task));
  }
  if (!first) return;  // whoever posted first has rung the bell
  const uint64_t one = 1;
  // The write cannot fail: the counter of an eventfd is full only at 2^64 - 2, and Post rings once
  // for each time that the loop takes what is posted.
  [[maybe_unused]] ssize_t written = write(wake_.get(), &one, sizeof(one));
}

TimerId EpollLoop::At(absl::Time when, Task task) {
  const TimerId id = next_timer_++;
  // The number is part of the key, so timers of one time run in the order in which they were set.
  timers_.emplace(std::make_pair(when, id), std::move(task));
  timer_times_.emplace(id, when);
  return id;
}

void EpollLoop::Cancel(TimerId timer) {
  auto found = timer_times_.find(timer);
  if (found == timer_times_.end()) return;
  timers_.erase({found->second, timer});
  timer_times_.erase(found);
}

void EpollLoop::Watch(int fd, std::function<void()> ready) {
  descriptors_.Watch(fd, EPOLLIN, [ready = std::move(ready)](uint32_t) { ready(); });
}

void EpollLoop::Unwatch(int fd) { descriptors_.Unwatch(fd); }

void EpollLoop::Run() {
  while (!stopped_) RunOnce(absl::InfiniteDuration());
  // What was posted before Stop still runs, as Stop promises.
  RunPosted();
}

void EpollLoop::RunOnce(absl::Duration wait) {
  wait = std::min(wait, UntilNextTimer());
  // The sleeper is asked last, since it may look at its memory for a while. A wait of no time needs
  // no bell, so then nothing is armed.
  if (sleeper_ != nullptr && wait > absl::ZeroDuration()) {
    wait = std::min(wait, sleeper_->BeforeSleep());
  }
  const int ready = descriptors_.Wait(wait);
  if (sleeper_ != nullptr) sleeper_->AfterSleep(ready == 0 && wait > absl::ZeroDuration());
  RunPosted();
  RunTimers();
}

void EpollLoop::Stop() {
  // As a task: the flag is the loop's own, and what was posted before comes first.
  Post([this] { stopped_ = true; });
}

void EpollLoop::RunPosted() {
  std::vector<Task> tasks;
  {
    const absl::MutexLock lock(&mutex_);
    tasks.swap(posted_);
  }
  // Without the lock: a task may post. What it posts runs in the next round, so that timers and
  // descriptors are never starved by tasks that post themselves.
  for (Task& task : tasks) task();
}

void EpollLoop::RunTimers() {
  // The time is read once: a timer that sets another for the time that is then leaves it to the
  // next round, so that descriptors and tasks have their turn.
  const absl::Time now = clock_.Now();
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
    // Out of the table before it runs: it may cancel itself, or set a timer.
    auto node = timers_.extract(timers_.begin());
    timer_times_.erase(node.key().second);
    node.mapped()();
  }
}

absl::Duration EpollLoop::UntilNextTimer() const {
  if (timers_.empty()) return absl::InfiniteDuration();
  return std::max(absl::ZeroDuration(), timers_.begin()->first.first - clock_.Now());
}

}  // namespace epic
