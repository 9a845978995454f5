// ExpertHosts: which ranks hold which experts, which are told to, and what to tell them next. A
// plain object between the world's members and cluster/placement/balance.h.
//
//   hosts.Join(rank, slots, machine);
//   for (auto& [rank, order] : hosts.Plan()) …;    // to be sent
//   RETURN_IF_ERROR(hosts.OnReady(rank, ready));   // and Plan again
//   map.replicas = hosts.replicas();
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "cluster/placement/balance.h"
#include "coordinator/world/expert_proofs.h"
#include "coordinator/world/model_shape.h"
#include "proto/epic/v1/worker.pb.h"

namespace epic::coordinator {

class ExpertHosts {
 public:
  // `replicas_max`: replicas of an expert that slots are used for, once all have a home. `proofs`
  // outlives this.
  ExpertHosts(ModelShape shape, int replicas_max, ExpertProofs& proofs)
      : shape_(shape), replicas_max_(replicas_max), proofs_(&proofs) {
    Count();
  }

  using LayerExperts = google::protobuf::RepeatedPtrField<v1::LayerExperts>;

  // `held`: what the rank says that it holds already. What cannot be, or has other bytes than its
  // first loader had, is not believed: it will be ordered, and loaded again.
  void Join(int rank, int64_t slots, std::string machine, const LayerExperts& held = {});
  // Lost, or gone: what it held is held no more.
  void Leave(int rank);
  // A leaving rank keeps what nobody else holds until somebody does.
  void SetLeaving(int rank, bool leaving);
  // A rank that has joined or left makes the rest uneven: the next Plan that finds every expert
  // held may move some.
  void AllowMoves() { may_move_ = true; }

  // Orders for those ranks whose hold should change. What an order does not list is held no more
  // from now on. Experts that nobody holds come first, and stop all other loads; replicas and moves
  // follow when there are none, unless all is `frozen`.
  std::vector<std::pair<int, v1::PlaceExperts>> Plan(bool frozen = false);

  // The answer to an order. InvalidArgument for an answer that no honest rank gives; DataLoss,
  // naming expert, hashes and ranks, if an expert's bytes differ from what its first loader had:
  // the rank then holds nothing. Answers to replaced orders are passed over.
  absl::Status OnReady(int rank, const v1::ExpertsReady& ready);
  // It holds what it held before, and gets no more.
  void OnFailed(int rank, uint64_t order);

  // What is held, as a map says it.
  cluster::Replicas replicas() const;
  // What will be held once all orders are done.
  cluster::Replicas ordered_replicas() const;
  // Slots that are missing for all experts if `without` were not there; at most 0: none.
  int64_t Shortfall(int without = -1) const;
  int64_t unhosted_count() const { return unhosted_count_; }          // held by no rank
  int64_t unreplicated_count() const { return unreplicated_count_; }  // held by one rank alone
  int64_t held_count(int rank) const;
  bool loading(int rank) const;
  std::vector<int> loading_ranks() const;
  // Whether the rank holds an expert that no other rank holds.
  bool IsOnlyHolder(int rank) const;
  const ModelShape& shape() const { return shape_; }
  bool empty() const { return hosts_.empty(); }

 private:
  using Experts = std::set<int>;  // layer * expert_count + expert
  struct Host {
    cluster::ExpertHost host;
    Experts held, ordered;
    uint64_t order = 0;
    bool loading = false;
  };
  int Id(int layer, int expert) const { return layer * shape_.expert_count + expert; }
  // After each change of what is held.
  void Count();
  cluster::BalanceRequest Request(bool homes_only) const;
  // By rank.
  std::map<int, Experts> Wanted(const cluster::Replicas& desired) const;
  v1::PlaceExperts Order(Host& host, Experts wanted);
  absl::Status CheckHashes(int rank, const LayerExperts& layers);
  cluster::Replicas ReplicasOf(Experts Host::* experts) const;

  ModelShape shape_;
  int replicas_max_;
  ExpertProofs* proofs_;
  std::map<int, Host> hosts_;
  std::vector<int> holder_counts_;  // by id
  int64_t unhosted_count_ = 0;
  int64_t unreplicated_count_ = 0;
  uint64_t last_order_ = 0;
  bool may_move_ = false;
};

}  // namespace epic::coordinator
