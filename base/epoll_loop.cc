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

EpollLoop::EpollLoop(Clock& clock) : clock_(clock) {
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  CHECK(epoll_fd_ >= 0) << std::strerror(errno);
  wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  CHECK(wake_fd_ >= 0) << std::strerror(errno);
  Watch(wake_fd_, [this] {
    uint64_t count;
    while (read(wake_fd_, &count, sizeof(count)) > 0) {
    }
  });
}

EpollLoop::~EpollLoop() {
  close(wake_fd_);
  close(epoll_fd_);
}

void EpollLoop::Post(Task task) {
  bool first;
  {
    std::lock_guard lock(mutex_);
    first = posted_.empty();
    posted_.push_back(std::move(task));
  }
  if (!first) return;  // whoever posted first has rung the bell
  const uint64_t one = 1;
  [[maybe_unused]] ssize_t written = write(wake_fd_, &one, sizeof(one));
}

TimerId EpollLoop::At(absl::Time when, Task task) {
  const TimerId id = next_timer_++;
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
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  const bool known = watched_.contains(fd);
  CHECK(epoll_ctl(epoll_fd_, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) == 0)
      << "epoll_ctl of descriptor " << fd << ": " << std::strerror(errno);
  watched_[fd] = std::move(ready);
}

void EpollLoop::Unwatch(int fd) {
  if (watched_.erase(fd) > 0) epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, fd, nullptr);
}

void EpollLoop::Run() {
  while (!stopped_) RunOnce(absl::InfiniteDuration());
  RunPosted();
}

void EpollLoop::RunOnce(absl::Duration wait) {
  wait = std::min(wait, UntilNextTimer());
  // Rounded up, so that a timer is due when its wait ends.
  const int64_t wait_ms =
      wait == absl::InfiniteDuration()
          ? -1
          : absl::ToInt64Milliseconds(wait + absl::Milliseconds(1) - absl::Nanoseconds(1));
  epoll_event events[64];
  const int count =
      epoll_wait(epoll_fd_, events, 64, static_cast<int>(std::min<int64_t>(wait_ms, 1 << 30)));
  for (int i = 0; i < count; ++i) {
    auto found = watched_.find(events[i].data.fd);
    if (found == watched_.end()) continue;  // unwatched by an earlier event of this round
    std::function<void()> ready = found->second;
    ready();
  }
  RunPosted();
  RunTimers();
}

void EpollLoop::Stop() {
  Post([this] { stopped_ = true; });
}

void EpollLoop::RunPosted() {
  std::vector<Task> tasks;
  {
    std::lock_guard lock(mutex_);
    tasks.swap(posted_);
  }
  for (Task& task : tasks) task();
}

void EpollLoop::RunTimers() {
  const absl::Time now = clock_.Now();
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
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
