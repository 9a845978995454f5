// EpollSet: descriptors and what to do when they are ready. A set can itself be watched: its own
// descriptor is readable while one of the descriptors in it is ready. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>

#include "absl/time/time.h"
#include "base/unique_fd.h"

namespace epic {

class EpollSet {
 public:
  using Ready = std::function<void(uint32_t events)>;

  EpollSet();

  // Calls `ready` while one of `events` (EPOLLIN, EPOLLOUT; errors and hang-ups always) holds for
  // `fd`; a later call for the same descriptor replaces both. The descriptor stays the caller's;
  // Unwatch before closing it.
  void Watch(int fd, uint32_t events, Ready ready);
  // Only the events change.
  void SetEvents(int fd, uint32_t events);
  void Unwatch(int fd);

  // Waits at most `wait`, and calls the handlers of the descriptors that are ready: at most 64 of
  // them, and the rest the next time. Returns how many descriptors were ready.
  int Wait(absl::Duration wait);

  int fd() const { return epoll_.get(); }

 private:
  UniqueFd epoll_;
  // The handlers are shared, so that one that unwatches itself lives until it returns.
  std::unordered_map<int, std::shared_ptr<Ready>> watched_;
};

}  // namespace epic
