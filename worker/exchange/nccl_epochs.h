// NcclEpochs: epochs over NCCL, which the coordinator brings together (coordinator/world/epochs.h).
// It gives the rank a position, takes the communicator's id from one rank to all, and tells all
// when one of them has ended the epoch or is gone: as a revocation, after which they join again,
// for the next epoch. What a rank has loaded it keeps.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/env.h"
#include "cluster/transport/nccl/nccl_collective.h"
#include "worker/exchange/epoch_source.h"

namespace epic::worker {

class NcclEpochs : public EpochSource {
 public:
  // `clock` and `threads` outlive it. `on_stuck`: as NcclHandlers.
  NcclEpochs(std::shared_ptr<cluster::NcclApi> api, Clock& clock, Threads& threads, int size,
             std::function<void(const std::string& why)> on_stuck);

  int size() const override { return size_; }
  void Introduce(v1::WorkerIdentity& identity) const override;
  bool outlives_links() const override { return false; }
  void OnLink(cluster::ControlLink* link) override;
  void OnMessage(const v1::ControlMessage& message) override;
  absl::StatusOr<cluster::Collective*> collective() override;
  void Abort(const std::string& reason) override;
  bool Left() override;

 private:
  void OnInvitation(const v1::JoinEpoch& invitation);
  void Send(v1::ControlMessage message);

  const std::shared_ptr<cluster::NcclApi> api_;
  Clock& clock_;
  Threads& threads_;
  const int size_;
  const std::function<void(const std::string& why)> on_stuck_;
  absl::Status status_;
  cluster::ControlLink* link_ = nullptr;
  std::optional<v1::JoinEpoch> invitation_;  // to an epoch that has not been begun here
  std::unique_ptr<cluster::NcclCollective> collective_;
};

}  // namespace epic::worker
