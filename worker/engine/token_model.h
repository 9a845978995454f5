// TokenModel: what turns a StepPlan into logits, as an object that can be resumed. The transformer
// (worker/engine/transformer.h) is one; tests put an integer hash in its place
// (worker/testing/toy_model.h).
#pragma once

#include <functional>
#include <span>

#include "absl/status/statusor.h"
#include "base/env.h"
#include "kernels/step_plan.h"

namespace epic::worker {

// What a step is at, for reports.
struct StepPlace {
  const char* stage = "";
  int layer = 0;
};

// One step at a time, one thread.
class TokenModel {
 public:
  enum class Progress { kRunning, kWaiting, kDone };

  virtual ~TokenModel() = default;
  virtual int vocab_size() const = 0;

  // Starts a step. `plan` stays unchanged until kDone or an error.
  virtual void Begin(const kernels::StepPlan& plan) = 0;
  // Does a part of the step. kWaiting: another rank's answer is needed, call again when it may be
  // there. An error ends the step; its KV records are not to be relied on.
  virtual absl::StatusOr<Progress> Advance() = 0;

  // Of the step under way.
  virtual StepPlace place() const { return {}; }
  // From now on long stages stop every few milliseconds of `clock`, for others who wait for this
  // rank; null, as at first: they do not. Changes no bit.
  virtual void PaceAttention(const Clock* clock) {}

  // After kDone, until the next Begin.
  // [vocab_size] of row plan.logit_rows[index]. The caller may change them.
  virtual std::span<float> Logits(int index) = 0;
  // Whether a NaN was met in that row of the plan: what follows from it is void.
  virtual bool Fault(int row) const = 0;

  // As Backend::ForEach, between steps.
  virtual void ForEach(int count, const std::function<void(int)>& task) {
    for (int i = 0; i < count; ++i) task(i);
  }
};

}  // namespace epic::worker
