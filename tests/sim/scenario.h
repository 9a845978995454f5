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
  int machine = 0;        // replicas are kept on several
};

// Whether its client waits for the end.
enum class Patience { kWaits, kLeaves, kCancels };

struct RequestPlan {
  absl::Duration at;
  std::vector<int32_t> prompt;
  model::SamplingParams sampling;
  int max_tokens = 0;
  int32_t stop_token = 0;
  Patience patience = Patience::kWaits;
  absl::Duration waits;  // of those who do not
  absl::Duration deadline = absl::InfiniteDuration();
};

enum class FaultKind {
  kCrash,
  kHang,
  kCut,
  kBreak,
  kSlow,
  kHoldControl,
  // What operators do.
  kTerminate,  // SIGTERM; another process is started once this one has ended
  kDrain,
  kFence,
  kFreeze,
  // The coordinator's own loop stands still.
  kStall,
};

struct FaultPlan {
  absl::Duration at;
  FaultKind kind = FaultKind::kCrash;
  int seat = 0;          // of all but kFreeze and kStall
  int other = 0;         // of kCut (to) and kBreak
  absl::Duration lasts;  // of kHang, kCut, kSlow, kHoldControl, kFreeze, kStall
  int times = 1;         // of kSlow: as slow as before
};

struct Scenario {
  std::string name;
  uint64_t seed = 0;
  std::vector<SeatPlan> seats;
  int expect_ranks = 0;
  int expert_count = 0;  // of each layer
  int replicas_max = 1;
  absl::Duration network_delay_max, load_time;
  std::vector<RequestPlan> requests;
  std::vector<FaultPlan> faults;
  // Liveness: faults stop, and then every request must end. Else safety alone is judged: faults go
  // on to the end.
  bool liveness = true;
  // Nothing happens that a rank could be lost for: none may be.
  bool blameless = false;
};

// Names in the order in which seeds take them; the last one, of hundreds of ranks, by one seed in
// kLargeEvery.
inline constexpr uint64_t kLargeEvery = 400;
std::vector<std::string> ScenarioNames();
// `name` empty: by seed. Fails for no seed.
Scenario MakeScenario(uint64_t seed, const std::string& name);

std::string ToString(const Scenario& scenario);

}  // namespace epic::sim
