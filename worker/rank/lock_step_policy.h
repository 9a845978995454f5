// LockStepPolicy: a rank's part in a world whose ranks step together (--exchange mpi or nccl). The
// rank has both roles. The coordinator says which experts it holds
// (worker/service/epoch_placement.h), and loses an epoch as one. Where a process outlives its epoch
// (NCCL) the rank keeps the experts that it has loaded, and tells the coordinator of them when it
// joins again.
//
//   LockStepPolicy policy(plan, epochs, clock);
//   Rank rank(env, identity, dial, policy, …);
//   policy.Start(attention);                // once it is loaded: epochs are joined from then on
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "base/env.h"
#include "worker/engine/transformer.h"
#include "worker/exchange/collective_exchange.h"
#include "worker/exchange/epoch_source.h"
#include "worker/exchange/rank_class.h"
#include "worker/exchange/wave_model.h"
#include "worker/experts/loaded_experts.h"
#include "worker/options.h"
#include "worker/rank/exchange_policy.h"
#include "worker/rank/loaded_attention.h"
#include "worker/rank_plan.h"
#include "worker/service/epoch_placement.h"

namespace epic::worker {

// The flags that MakeRankPlan must be given for a rank of a world of `rank_count` that steps
// together.
WorkerOptions LockStepOptions(WorkerOptions options, int rank_count);

class LockStepPolicy : public ExchangePolicy {
 public:
  // All outlive this. `plan` is of LockStepOptions.
  LockStepPolicy(const RankPlan& plan, EpochSource& epochs, const Clock& clock);

  // `attention` outlives this.
  void Start(LoadedAttention& attention) { attention_ = &attention; }
  // The most that the rank loads: the weights, and experts for all of its slots.
  int64_t bytes_to_load() const;

  void Attach(Rank& rank) override { rank_ = &rank; }
  void Introduce(v1::WorkerIdentity& identity) const override;
  void Connect(cluster::ControlLink* link) override;
  bool OnMessage(const v1::ControlMessage& message) override;
  // FailedPrecondition if the ranks are not alike; the epoch is over then. An epoch's end is no
  // error where the process outlives it.
  absl::StatusOr<bool> Turn() override;
  bool CanGoOn() const override {
    return experts_.loading() && (stage_ == Stage::kLoading || stage_ == Stage::kStepping);
  }
  bool HasReadyTicket() const override { return false; }  // a waiting step is asked in every turn
  absl::Duration wait_max() const override;
  bool news_wakes_the_loop() const override { return false; }
  void FillReport(v1::RankReport& report) const override;
  void End() override;
  bool MayEnd() const override { return ends_ && (stage_ == Stage::kNoEpoch || stopped()); }

 private:
  enum class Stage : uint8_t {
    kNoEpoch,   // there is none yet
    kLoading,   // the experts that the epoch begins with
    kAgreeing,  // whether all its ranks are alike
    kStepping,
    kLeaving,  // it is over, and its buffers are in use yet
  };

  absl::StatusOr<bool> TurnStage();
  absl::StatusOr<bool> Enter();
  absl::StatusOr<bool> Load();
  // Loads one expert if an order wants one, and tells the outcome of the order at its end.
  absl::Status LoadOneExpert();
  absl::StatusOr<bool> Agree();
  absl::StatusOr<bool> Step();
  absl::StatusOr<bool> Leave();
  // Makes the exchange, the models and the engine of this epoch.
  absl::Status BuildEngine();
  // Aborted: this rank was revoked and the world stands still. A world that outlives the revocation
  // goes on; one with a rank that hangs never does.
  absl::Status CheckMoving();
  bool stopped() const { return stage_ == Stage::kStepping && wave_->stopped(); }

  const RankPlan& plan_;
  EpochSource& epochs_;
  const Clock& clock_;
  LoadedExperts experts_;
  EpochPlacement placement_;
  cluster::ControlLink* link_ = nullptr;
  Rank* rank_ = nullptr;
  LoadedAttention* attention_ = nullptr;
  bool ends_ = false;
  Stage stage_ = Stage::kNoEpoch;
  absl::Status failure_;                  // after which no other epoch is joined
  std::optional<absl::Time> revoked_at_;  // until the world has moved since
  absl::Time load_began_;
  // Valid from Enter to Leave.
  cluster::Collective* collective_ = nullptr;
  bool epoch_over_ = false;  // with the link to the coordinator
  std::optional<RankClass> ranks_;
  std::optional<CollectiveExchange> exchange_;
  std::optional<Transformer> transformer_;
  std::optional<WaveModel> wave_;
  std::optional<Engine> engine_;
};

}  // namespace epic::worker
