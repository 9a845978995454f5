// The part of Core that obeys operators, and tells how the cluster is.
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/core/change.h"
#include "coordinator/core/core.h"

namespace epic::coordinator {

absl::Status Core::ChangeWorld(const std::function<absl::Status(World&)>& change) {
  const Change changing(*this);
  absl::Status status = change(world_);
  CarryOut(world_.Take());
  return status;
}

void Core::Operate(std::function<absl::Status(World&)> change, Done done) {
  // `done` is called without the lock: an operator may ask again from there.
  const bool posted = mailbox_->Post(
      [this, change = std::move(change), done] { done(ChangeWorld(change)); });
  if (!posted) done(absl::UnavailableError("the coordinator is going away"));
}

void Core::Fence(int rank, Done done) {
  Operate([rank, this](World& world) { return world.Fence(rank, env_.clock.Now()); },
          std::move(done));
}

void Core::Freeze(bool frozen, Done done) {
  const auto change = [frozen](World& world) {
    world.Freeze(frozen);
    return absl::OkStatus();
  };
  Operate(change, std::move(done));
}

void Core::Drain(int rank, bool cancel, Done done) {
  const auto change = [rank, cancel, this](World& world) {
    return cancel ? world.CancelDrain(rank) : world.Drain(rank, env_.clock.Now());
  };
  Operate(change, std::move(done));
}

absl::Duration Core::StepAge(int rank, const Worker& worker) const {
  // An idle rank makes no steps, so the age of its last one says nothing.
  if (placer_.sequences(rank).empty()) return absl::ZeroDuration();
  return env_.clock.Now() - worker.last_step_at;
}

absl::Status Core::Ready() const {
  if (draining_) return absl::UnavailableError("draining: no new requests are taken");
  return world_.Ready();
}

absl::Status Core::Healthy() const {
  // Only probes and pages are told this: Submit asks the world alone, and takes requests meanwhile.
  if (absl::Status status = Ready(); !status.ok()) return status;
  for (const auto& [rank, worker] : workers_) {
    const absl::Duration age = StepAge(rank, worker);
    if (age <= kStepAgeMax) continue;
    const std::string activity = world_.liveness().Activity(rank, env_.clock.Now());
    return absl::UnavailableError(absl::StrFormat("rank %d: work queued and no step for %d s%s%s",
                                                  rank, absl::ToInt64Seconds(age),
                                                  activity.empty() ? "" : "; it is ", activity));
  }
  return absl::OkStatus();
}

ClusterStatus Core::status() const {
  const absl::MutexLock lock(&mutex_);
  const absl::Status healthy = Healthy();
  ClusterStatus status{.ready = healthy.ok(), .reason = std::string(healthy.message())};
  status.requests_waiting =
      static_cast<int>(placer_.waiting_count() + isolation_.waiting_count());
  for (const auto& [rank, worker] : workers_) {
    const auto sequences = static_cast<int>(placer_.sequences(rank).size());
    const int waiting = CountWaiting(worker.step, sequences);
    status.requests_waiting += waiting;
    // Both numbers come from one count, so their sum is right even where the rank's report is late.
    status.requests_running += sequences - waiting;
    status.ranks.push_back(RankStatusFrom(world_, rank, worker.step, sequences,
                                          StepAge(rank, worker), env_.clock.Now()));
  }
  status.frozen = world_.frozen();
  status.map_number = world_.map().version.number;
  if (const auto totals = world_.CountExperts()) {
    status.experts = totals->experts;
    status.experts_unhosted = totals->unhosted;
    status.experts_unreplicated = totals->unreplicated;
  }
  return status;
}

}  // namespace epic::coordinator
