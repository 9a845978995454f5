#include "base/sim_loop.h"

#include <utility>

namespace epic {

TimerId SimLoop::At(absl::Time when, Task task) {
  const TimerId id = next_timer_++;
  // As in EpollLoop, timers of one time run in the order in which they were set.
  timers_.emplace(std::make_pair(when, id), std::move(task));
  timer_times_.emplace(id, when);
  return id;
}

void SimLoop::Cancel(TimerId timer) {
  auto found = timer_times_.find(timer);
  if (found == timer_times_.end()) return;
  timers_.erase({found->second, timer});
  timer_times_.erase(found);
}

void SimLoop::Advance(absl::Duration duration) {
  const absl::Time end = now_ + duration;
  RunPosted();
  while (!timers_.empty() && timers_.begin()->first.first <= end) {
    auto node = timers_.extract(timers_.begin());
    timer_times_.erase(node.key().second);
    // A timer that was set for the past runs now: time never goes back.
    now_ = std::max(now_, node.key().first);
    node.mapped()();
    RunPosted();
  }
  now_ = end;
}

void SimLoop::RunPosted() {
  // Unlike EpollLoop, this also runs what tasks post: afterwards nothing is left to do at this
  // time, which is what tests look at.
  while (!posted_.empty()) {
    // Taken out first: the task may post, which moves the queue.
    Task task = std::move(posted_.front());
    posted_.pop_front();
    task();
  }
}

uint64_t SeededRandom::Next() {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace epic
