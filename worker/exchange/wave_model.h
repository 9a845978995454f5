// WaveModel: a rank's TokenModel in a world that steps together. It votes before each step, and
// takes part in the others' steps while this rank has nothing to compute.
//
//   WaveModel model(config, own, exchange, clock);     // the Engine computes with `model`
//   while (!model.stopped()) {
//     loop.RunOnce(model.wait());
//     engine.Advance();
//     RETURN_IF_ERROR(model.Join());
//   }
//
// A world without work votes too, with pauses of 1 ms doubling to kPauseMax: so long may the first
// token after a rest wait for the other ranks. All ranks pause alike; one that gets work does not
// wait for its own pause to end.
#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/env.h"
#include "model/config.h"
#include "model/idle_step.h"
#include "worker/engine/token_model.h"
#include "worker/exchange/collective_exchange.h"

namespace epic::worker {

// One thread, the rank's loop. An error is the end of the epoch: Join returns it from then on, and
// a step under way has no end, so that nobody takes the epoch's failure for that of its sequences.
class WaveModel : public TokenModel {
 public:
  static constexpr absl::Duration kPauseMax = absl::Milliseconds(16);

  // All outlive this. `own` computes this rank's steps through `exchange`.
  WaveModel(const model::ModelConfig& config, TokenModel& own, CollectiveExchange& exchange,
            const Clock& clock)
      : config_(config), own_(own), exchange_(exchange), clock_(clock) {}

  int vocab_size() const override { return own_.vocab_size(); }
  void Begin(const kernels::StepPlan& plan) override;
  absl::StatusOr<Progress> Advance() override;
  std::span<float> Logits(int index) override { return own_.Logits(index); }
  bool Fault(int row) const override { return own_.Fault(row); }
  void ForEach(int count, const std::function<void(int)>& task) override {
    own_.ForEach(count, task);
  }
  StepPlace place() const override { return own_.place(); }

  // Does a part of what the world does, unless a step of this rank's own has begun (then Advance
  // does) or the pause has not passed.
  absl::Status Join();
  // How long the loop may sleep for messages before it calls Advance or Join again.
  absl::Duration wait() const;

  // This rank will begin no more steps: it takes part until all ranks have said so.
  void End() { ends_ = true; }
  bool stopped() const { return stopped_; }
  // When a turn last did something, or found the world at rest.
  absl::Time moved_at() const { return moved_at_; }
  // Votes without work since the last step; the world is at rest when there is one.
  int rests() const { return rests_; }

 private:
  enum class Stage : uint8_t { kNone, kVote, kOwnStep, kIdleStep };

  absl::StatusOr<Progress> Turn();
  void TakeOutcome(const Wave& wave);

  const model::ModelConfig& config_;
  TokenModel& own_;
  CollectiveExchange& exchange_;
  const Clock& clock_;
  absl::Status status_;
  Stage stage_ = Stage::kNone;
  const kernels::StepPlan* plan_ = nullptr;  // of the engine's step
  bool voted_rows_ = false;                  // the open vote brought plan_'s rows
  std::optional<model::IdleStep> idle_;
  bool waits_ = false;  // the last turn did nothing
  bool ends_ = false;
  bool stopped_ = false;
  int rests_ = 0;
  absl::Time next_vote_ = absl::InfinitePast();
  absl::Time moved_at_ = absl::InfinitePast();
};

}  // namespace epic::worker
