// EpochSource: where a rank that steps with others gets its Collective, and the next one when an
// epoch (one life of a communicator) has ended.
//
//   while (true) {
//     … until epochs.collective() is there …
//     … step with the others; a rank that cannot go on calls epochs.Abort …
//     while (!epochs.Left()) loop.RunOnce(…);   // then free what the collective had been given
//   }
//
// Implementations: StaticEpoch (MPI, the only epoch of a process), NcclEpochs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cluster/control_link.h"
#include "cluster/transport/collective.h"
#include "proto/epic/v1/worker.pb.h"

namespace epic::worker {

// One thread, the rank's loop.
class EpochSource {
 public:
  virtual ~EpochSource() = default;

  // Ranks of every epoch.
  virtual int size() const = 0;
  // Adds what the coordinator must know about this rank's epochs when the rank joins.
  virtual void Introduce(v1::WorkerIdentity& identity) const = 0;
  // Whether an epoch goes on when the coordinator has revoked this rank, or is gone itself.
  virtual bool outlives_links() const = 0;
  // Each new link to the coordinator, or null, and each of its messages.
  virtual void OnLink(cluster::ControlLink* link) {}
  virtual void OnMessage(const v1::ControlMessage& message) {}

  // The collective of this epoch, or null while there is none. After an error this process will
  // have no other epoch.
  virtual absl::StatusOr<cluster::Collective*> collective() = 0;
  // Ends the epoch for all ranks, if it has not ended. Does not return where the process ends.
  virtual void Abort(const std::string& reason) = 0;
  // After an error or an Abort: whether the collective has given up its buffers; it is gone then.
  virtual bool Left() = 0;
};

// The epoch of a communicator that a launcher made with the processes.
class StaticEpoch : public EpochSource {
 public:
  // `epoch` is equal for all its ranks.
  StaticEpoch(std::unique_ptr<cluster::Collective> collective, uint64_t epoch)
      : collective_(std::move(collective)), epoch_(epoch) {}

  int size() const override { return collective_->size(); }
  void Introduce(v1::WorkerIdentity& identity) const override {
    identity.set_epoch(epoch_);
    identity.set_epoch_ranks(collective_->size());
    identity.set_epoch_position(collective_->rank() + 1);
  }
  bool outlives_links() const override { return true; }
  absl::StatusOr<cluster::Collective*> collective() override { return collective_.get(); }
  void Abort(const std::string& reason) override { collective_->Abort(reason); }
  bool Left() override { return true; }

 private:
  const std::unique_ptr<cluster::Collective> collective_;
  const uint64_t epoch_;
};

}  // namespace epic::worker
