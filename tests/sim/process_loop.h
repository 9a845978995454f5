// ProcessLoop: the event loop of a simulated process. What is posted, or due, waits for the next
// turn of the process, as it does while a real one computes or is stopped.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <unordered_map>
#include <utility>

#include "base/sim_loop.h"

namespace epic::sim {

class ProcessLoop : public Loop {
 public:
  // `wake`: a turn is wanted, not before `when`.
  ProcessLoop(const SimLoop& clock, std::function<void(absl::Time when)> wake)
      : clock_(clock), wake_(std::move(wake)) {}

  void Post(Task task) override {
    posted_.push_back(std::move(task));
    wake_(clock_.Now());
  }
  TimerId At(absl::Time when, Task task) override {
    const TimerId id = next_timer_++;
    timers_.emplace(std::pair(when, id), std::move(task));
    timer_times_.emplace(id, when);
    wake_(std::max(when, clock_.Now()));
    return id;
  }
  void Cancel(TimerId timer) override {
    const auto found = timer_times_.find(timer);
    if (found == timer_times_.end()) return;
    timers_.erase({found->second, timer});
    timer_times_.erase(found);
  }

  // When the next timer is due.
  absl::Time next_timer() const {
    return timers_.empty() ? absl::InfiniteFuture() : timers_.begin()->first.first;
  }
  // What EpollLoop::RunOnce runs: what was posted before, then the timers that are due.
  void RunDue() {
    for (Task& task : std::exchange(posted_, {})) task();
    while (next_timer() <= clock_.Now()) {
      auto node = timers_.extract(timers_.begin());
      timer_times_.erase(node.key().second);
      node.mapped()();
    }
  }

 private:
  const SimLoop& clock_;
  const std::function<void(absl::Time)> wake_;
  std::deque<Task> posted_;
  TimerId next_timer_ = 1;
  std::map<std::pair<absl::Time, TimerId>, Task> timers_;
  std::unordered_map<TimerId, absl::Time> timer_times_;
};

}  // namespace epic::sim
