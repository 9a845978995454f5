// LockStepRank: a worker as one of the ranks that a launcher started together (--exchange mpi). It
// has both roles and holds its share of the experts of a static map (worker/exchange/static_map.h).
// To the coordinator it is a *whole* rank: where its experts are is the world's own affair, and
// such a world is lost and started as one.
#pragma once

#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "base/epoll_loop.h"
#include "cluster/control_link.h"
#include "cluster/join_token.h"
#include "cluster/transport/collective.h"
#include "worker/connection.h"
#include "worker/engine/transformer.h"
#include "worker/exchange/collective_exchange.h"
#include "worker/exchange/wave_model.h"
#include "worker/experts/loaded_experts.h"
#include "worker/options.h"
#include "worker/rank_plan.h"
#include "worker/service/worker_service.h"

namespace epic::worker {

// What MakeRankPlan is to be asked for a rank of a world of `rank_count` that steps together.
WorkerOptions LockStepOptions(WorkerOptions options, int rank_count);

// One thread, the loop's.
class LockStepRank {
 public:
  // All outlive this. `plan` is of LockStepOptions.
  LockStepRank(const WorkerOptions& options, const RankPlan& plan,
               std::optional<cluster::JoinToken> token, cluster::Collective& collective,
               EpollLoop& loop, Env env);

  // Loads, waits for the other ranks, and serves until all ranks want to leave. FailedPrecondition
  // if the ranks are not alike or the coordinator refuses this one; the caller ends the world.
  absl::Status Run();
  // Takes no new sequences; wants to leave with the last, and tells the coordinator. A launcher
  // whose world breaks asks so too before it kills: the coordinator then moves the sequences, and
  // does not take the death for theirs.
  void Drain();

 private:
  v1::WorkerIdentity Identity() const;
  absl::Status Load();
  absl::Status LoadExperts();
  absl::Status FormWorld();
  void ReportLoading(int64_t bytes);
  void OnLink(cluster::ControlLink* link);
  void OnMessage(const v1::ControlMessage& message);
  void TellDrain();

  const RankPlan& plan_;
  cluster::Collective& collective_;
  EpollLoop& loop_;
  const Env env_;
  const std::shared_ptr<const cluster::ExpertMap> map_;
  LoadedExperts experts_;
  CollectiveExchange exchange_;
  WorkerService sequences_;
  // Before the connection, whose handlers use them.
  cluster::ControlLink* link_ = nullptr;
  bool ends_ = false;
  std::optional<Connection> connection_;
  // Once loaded.
  std::unique_ptr<model::Model> model_;
  std::optional<KvPool> pool_;
  std::optional<PageLedger> pages_;
  std::optional<Transformer> transformer_;
  std::optional<WaveModel> wave_;
  std::optional<Engine> engine_;
};

}  // namespace epic::worker
