#include "coordinator/core/cluster_status.h"

#include <algorithm>

namespace epic::coordinator {

StepCounts StepCountsFrom(const StepCounts& before, const v1::StepReport& report) {
  return {.running = report.running(),
          .waiting = report.waiting(),
          .kv_pages_used = report.kv_pages_used(),
          .number = static_cast<int64_t>(report.step()),
          .preemptions = report.preemptions(),
          .prompt_tokens_computed = report.prompt_tokens_computed(),
          // A report gives the time of one step alone; its other totals count since the worker's
          // start.
          .time = before.time + absl::Seconds(report.step_seconds())};
}

int CountWaiting(const StepCounts& step, int sequence_count) {
  if (step.waiting == 0) return 0;
  // Sequences that ran in the step may have ended with it.
  return std::max(0, sequence_count - step.running);
}

RankStatus RankStatusFrom(const World& world, int rank, const StepCounts& step, int sequence_count,
                          absl::Duration step_age, absl::Time now) {
  const Member& member = world.members().at(rank);
  const v1::RankReport& report = member.report;
  RankStatus status{.rank = rank,
                    .generation = member.generation,
                    .state = world.State(rank),
                    .attention = member.identity.attention(),
                    .experts = member.identity.experts(),
                    .host = member.identity.host(),
                    .activity = world.liveness().Activity(rank, now),
                    .description = member.identity.description(),
                    .profile = member.identity.profile(),
                    .loaded_bytes = member.load.loaded_bytes(),
                    .total_bytes = member.load.total_bytes()};
  // What it says once it has loaded is truer than what it expected when it dialled.
  if (member.ready) {
    status.description = member.ready->description();
    status.profile = member.ready->profile();
    status.kv_page_count = member.ready->kv_page_count();
  }
  status.running = step.running;
  status.waiting = step.waiting;
  status.kv_pages_used = step.kv_pages_used;
  status.steps = step.number;
  status.preemptions = step.preemptions;
  status.prompt_tokens_computed = step.prompt_tokens_computed;
  status.step_time = step.time;
  status.last_step_age = step_age;
  status.last_report_age = world.liveness().ReportAge(rank, now);
  status.sequences = sequence_count;
  status.experts_held = static_cast<int>(world.CountExpertsHeld(rank));
  status.expert_slots = member.identity.expert_slots();
  status.map_number = report.map_number();
  status.outstanding_dispatches = report.outstanding_dispatches();
  status.credits = report.credits();
  status.oldest_wait = world.liveness().WaitAge(rank, now);
  status.expert_rows_served = report.expert_rows_served();
  status.replayed_rows = report.replayed_rows();
  status.stale_frames = report.stale_frames();
  status.doorbell_rescues = report.doorbell_rescues();
  status.resident_bytes = report.resident_bytes();
  status.asleep_with_work = absl::Seconds(report.asleep_with_work_seconds());
  return status;
}

}  // namespace epic::coordinator
