// What the core tells of a rank: of the world's member, of its worker's steps, and of what it has
// to do.
#pragma once

#include "absl/time/time.h"
#include "coordinator/inference.h"
#include "coordinator/world/world.h"

namespace epic::coordinator {

// What a worker's newest step report says of the whole worker.
struct StepCounts {
  int running = 0;
  int waiting = 0;
  int kv_pages_used = 0;
  int64_t number = 0;  // steps so far
  int64_t preemptions = 0;
  int64_t prompt_tokens_computed = 0;  // so far; those computed again count again
  absl::Duration time = absl::ZeroDuration();  // of all steps so far
};

// `before`: what the worker had reported before this step.
StepCounts StepCountsFrom(const StepCounts& before, const v1::StepReport& report);

// How many of a rank's sequences wait for a place in its batch. A sequence that the report does not
// know yet gets a place in the next step, unless others wait already.
int CountWaiting(const StepCounts& step, int sequence_count);

// `rank` is in the world; `sequence_count` are given to it and not ended.
RankStatus RankStatusFrom(const World& world, int rank, const StepCounts& step, int sequence_count,
                          absl::Duration step_age, absl::Time now);

}  // namespace epic::coordinator
