// A scenario is data: a world, the work that is asked of it, and what happens to it meanwhile.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "model/sampler.h"

namespace epic::sim {

// A machine of the world; its process is started again when it dies.
struct SeatPlan {
  bool attention = false;
  bool experts = false;
  int slots = 0;
  int pages = 0;
  double slowness = 1;
  absl::Duration starts;  // at the beginning, or later: a join
};

struct RequestPlan {
  absl::Duration at;
  std::vector<int32_t> prompt;
  model::SamplingParams sampling;
  int max_tokens = 0;
  int32_t stop_token = 0;
  bool cancelled = false;  // its client goes away after a while
};

enum class FaultKind { kCrash, kHang, kCut, kBreak, kSlow, kHoldControl, kDrain };

struct FaultPlan {
  absl::Duration at;
  FaultKind kind = FaultKind::kCrash;
  int seat = 0;
  int other = 0;         // of kCut (to) and kBreak
  absl::Duration lasts;  // of kHang, kCut, kSlow, kHoldControl
};

struct Scenario {
  std::string name;
  uint64_t seed = 0;
  std::vector<SeatPlan> seats;
  int expect_ranks = 0;
  int replicas_max = 1;
  absl::Duration network_delay_max, load_time;
  std::vector<RequestPlan> requests;
  std::vector<FaultPlan> faults;
  // Liveness: faults stop, and then every request must end. Else safety alone is judged: faults go
  // on to the end.
  bool liveness = true;
};

// Names in the order in which seeds take them.
const std::vector<std::string>& ScenarioNames();
// `name` empty: by seed. Fails for no seed.
Scenario MakeScenario(uint64_t seed, const std::string& name);

std::string ToString(const Scenario& scenario);

}  // namespace epic::sim
