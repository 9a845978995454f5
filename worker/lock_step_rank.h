// LockStepRank: a worker as one of the ranks of an epoch (--exchange mpi or nccl). It has both
// roles. The coordinator says which experts it holds (worker/service/epoch_placement.h), and loses
// an epoch as one. Where a process outlives its epoch (NCCL) the rank keeps the experts that it has
// loaded, and tells the coordinator of them when it joins again.
#pragma once

#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "base/epoll_loop.h"
#include "cluster/control_link.h"
#include "cluster/join_token.h"
#include "worker/connection.h"
#include "worker/engine/transformer.h"
#include "worker/exchange/collective_exchange.h"
#include "worker/exchange/epoch_source.h"
#include "worker/exchange/wave_model.h"
#include "worker/experts/loaded_experts.h"
#include "worker/options.h"
#include "worker/rank_plan.h"
#include "worker/service/epoch_placement.h"
#include "worker/service/worker_service.h"

namespace epic::worker {

// What MakeRankPlan is to be asked for a rank of a world of `rank_count` that steps together.
WorkerOptions LockStepOptions(WorkerOptions options, int rank_count);

// One thread, the loop's.
class LockStepRank {
 public:
  // All outlive this. `plan` is of LockStepOptions.
  LockStepRank(const WorkerOptions& options, const RankPlan& plan,
               std::optional<cluster::JoinToken> token, EpochSource& epochs, EpollLoop& loop,
               Env env);
  ~LockStepRank();

  // Loads, waits for the other ranks, and serves until all ranks want to leave, over as many epochs
  // as it takes. FailedPrecondition if the ranks are not alike or the coordinator refuses this one;
  // the epoch is over then.
  absl::Status Run();
  // Takes no new sequences; wants to leave with the last, and tells the coordinator. A launcher
  // whose world breaks asks so too before it kills: the coordinator then moves the sequences, and
  // does not take the death for theirs.
  void Drain();

 private:
  v1::WorkerIdentity Identity() const;
  absl::Status RunEpoch();
  absl::Status AwaitEpoch();
  absl::Status Load();
  absl::Status LoadExperts();
  // Loads one expert, if one is to be loaded, and tells the outcome of an order at its end.
  absl::Status LoadOneExpert();
  absl::Status AwaitOthers();
  void LeaveEpoch();
  // Aborted: this rank was revoked and the world stands still. A world that outlives the revocation
  // goes on; one with a rank that hangs never does.
  absl::Status CheckMoving();
  void ReportLoading(int64_t bytes);
  // Whoever reports nothing any more hangs (docs/collective.md).
  void Report();
  void ReportAgain();
  void OnLink(cluster::ControlLink* link);
  void OnMessage(const v1::ControlMessage& message);
  void TellDrain();
  void Send(v1::ControlMessage message);

  const RankPlan& plan_;
  EpochSource& epochs_;
  EpollLoop& loop_;
  const Env env_;
  LoadedExperts experts_;
  EpochPlacement placement_;
  WorkerService sequences_;
  // Before the connection, whose handlers use them.
  cluster::ControlLink* link_ = nullptr;
  bool ends_ = false;
  absl::Time reported_at_ = absl::InfinitePast();
  int64_t loaded_bytes_ = 0;
  uint64_t reports_ = 0;
  std::optional<absl::Time> revoked_at_;  // until the world has moved since
  std::optional<Connection> connection_;
  // Once loaded.
  std::unique_ptr<model::Model> model_;
  std::optional<KvPool> pool_;
  std::optional<PageLedger> pages_;
  // Of an epoch.
  cluster::Collective* collective_ = nullptr;
  bool epoch_over_ = false;  // with the link to the coordinator
  std::optional<CollectiveExchange> exchange_;
  std::optional<Transformer> transformer_;
  std::optional<WaveModel> wave_;
  std::optional<Engine> engine_;
};

}  // namespace epic::worker
