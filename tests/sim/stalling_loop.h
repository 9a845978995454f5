// StallingLoop: the coordinator's loop in the simulated world. While it stalls nothing of it runs;
// what is due meanwhile runs afterwards, in order, as a process does that was not scheduled.
#pragma once

#include <algorithm>
#include <map>
#include <utility>

#include "base/sim_loop.h"

namespace epic::sim {

class StallingLoop : public Loop {
 public:
  explicit StallingLoop(SimLoop& loop) : loop_(loop) {}

  void Stall(absl::Duration lasts) { until_ = std::max(until_, loop_.Now() + lasts); }

  void Post(Task task) override { At(loop_.Now(), std::move(task)); }
  TimerId At(absl::Time when, Task task) override {
    const TimerId id = next_timer_++;
    tasks_.emplace(id, std::move(task));
    Plan(when, id);
    return id;
  }
  void Cancel(TimerId timer) override { tasks_.erase(timer); }

 private:
  void Plan(absl::Time when, TimerId id) {
    loop_.At(std::max(when, until_), [this, id] {
      if (loop_.Now() < until_) return Plan(until_, id);
      auto task = tasks_.extract(id);
      if (!task.empty()) task.mapped()();
    });
  }

  SimLoop& loop_;
  absl::Time until_ = absl::InfinitePast();
  TimerId next_timer_ = 1;
  std::map<TimerId, Task> tasks_;  // not begun or cancelled
};

}  // namespace epic::sim
