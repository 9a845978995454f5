#include "base/epoll_set.h"

#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace epic {

EpollSet::EpollSet() : epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  CHECK(epoll_.valid()) << std::strerror(errno);
}

void EpollSet::Watch(int fd, uint32_t events, Ready ready) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  // A descriptor that was closed while it was watched is known here and not to the kernel, and the
  // check below fails. That is meant: the number may be another descriptor's by now.
  const bool known = watched_.contains(fd);
  CHECK(epoll_ctl(epoll_.get(), known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) == 0)
      << "epoll_ctl of descriptor " << fd << ": " << std::strerror(errno);
  watched_[fd] = std::make_shared<Ready>(std::move(ready));
}

void EpollSet::SetEvents(int fd, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0)
      << "epoll_ctl of descriptor " << fd << ": " << std::strerror(errno);
}

void EpollSet::Unwatch(int fd) {
  // Errors are ignored: a descriptor that is closed already has left the set by itself.
  if (watched_.erase(fd) > 0) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

int EpollSet::Wait(absl::Duration wait) {
  // Rounded up, so that a timer is due when its wait ends.
  const int64_t wait_ms =
      wait == absl::InfiniteDuration()
          ? -1
          : absl::ToInt64Milliseconds(wait + absl::Milliseconds(1) - absl::Nanoseconds(1));
  epoll_event events[64];
  const int count =
      epoll_wait(epoll_.get(), events, 64, static_cast<int>(std::min<int64_t>(wait_ms, 1 << 30)));
  for (int i = 0; i < count; ++i) {
    auto found = watched_.find(events[i].data.fd);
    if (found == watched_.end()) continue;  // unwatched by an earlier event of this round
    // Held for the call, which may unwatch, and so free, what is being called.
    const std::shared_ptr<Ready> ready = found->second;
    (*ready)(events[i].events);
  }
  // A wait that a signal interrupts counts as one in which nothing was ready: callers wait again.
  return std::max(count, 0);
}

}  // namespace epic
