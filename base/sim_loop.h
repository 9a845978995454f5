// A simulated world for tests: time moves only when told, and everything repeats from a seed.
#pragma once

#include <deque>
#include <map>
#include <unordered_map>

#include "base/env.h"

namespace epic {

// A loop and the clock that it runs by. One thread only.
class SimLoop : public Loop, public Clock {
 public:
  absl::Time Now() const override { return now_; }
  void Post(Task task) override { posted_.push_back(std::move(task)); }
  TimerId At(absl::Time when, Task task) override;
  void Cancel(TimerId timer) override;

  // Runs posted tasks and timers, in order of time, up to `now + duration`; then that is the time.
  void Advance(absl::Duration duration);
  // Runs posted tasks until there are none; time stands still.
  void RunPosted();

 private:
  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
  std::deque<Task> posted_;
  TimerId next_timer_ = 1;
  std::map<std::pair<absl::Time, TimerId>, Task> timers_;
  std::unordered_map<TimerId, absl::Time> timer_times_;
};

// SplitMix64 (Steele, Lea, Flood 2014).
class SeededRandom : public Random {
 public:
  explicit SeededRandom(uint64_t seed) : state_(seed) {}
  uint64_t Next() override;

 private:
  uint64_t state_;
};

}  // namespace epic
