#include "worker/exchange/nccl_epochs.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace epic::worker {

NcclEpochs::NcclEpochs(std::shared_ptr<cluster::NcclApi> api, Clock& clock, Threads& threads,
                       int size, std::function<void(const std::string& why)> on_stuck)
    : api_(std::move(api)),
      clock_(clock),
      threads_(threads),
      size_(size),
      on_stuck_(std::move(on_stuck)) {}

void NcclEpochs::Introduce(v1::WorkerIdentity& identity) const {
  // Neither number nor position: the coordinator gives both.
  identity.set_epoch_ranks(size_);
}

void NcclEpochs::OnLink(cluster::ControlLink* link) {
  link_ = link;
  invitation_.reset();
  // The coordinator that answers next knows nothing of this epoch.
  if (collective_) collective_->End("the link to the coordinator has ended");
}

void NcclEpochs::OnMessage(const v1::ControlMessage& message) {
  if (message.has_revoked() && collective_) collective_->End(message.revoked().reason());
  if (message.has_join_epoch()) OnInvitation(message.join_epoch());
}

void NcclEpochs::OnInvitation(const v1::JoinEpoch& invitation) {
  // The communicator is made in collective(), when the one before has been left.
  if (!invitation.unique_id().empty()) {
    invitation_ = invitation;
    return;
  }
  cluster::NcclUniqueId id;
  const cluster::NcclResult result = api_->GetUniqueId(id);
  v1::ControlMessage answer;
  if (result == cluster::NcclResult::kSuccess) {
    answer.mutable_epoch_id()->set_epoch(invitation.epoch());
    answer.mutable_epoch_id()->set_unique_id(std::string(id.begin(), id.end()));
  } else {
    status_ = absl::UnavailableError(absl::StrCat("ncclGetUniqueId: ", api_->ErrorText(result)));
    // The others wait for an id that will not come.
    answer.mutable_end_epoch()->set_reason(std::string(status_.message()));
  }
  Send(std::move(answer));
}

absl::StatusOr<cluster::Collective*> NcclEpochs::collective() {
  if (!status_.ok()) return status_;
  // Only one communicator is open at a time: the card may still write for the one before.
  if (collective_ || !invitation_) return collective_.get();
  const v1::JoinEpoch invitation = *std::exchange(invitation_, std::nullopt);
  cluster::NcclOptions options{.rank = invitation.rank(), .size = invitation.size()};
  if (invitation.size() != size_ || invitation.rank() < 0 || invitation.rank() >= size_ ||
      invitation.unique_id().size() != options.id.size()) {
    status_ = absl::InternalError(
        absl::StrCat("the coordinator offers position ", invitation.rank(), " of ",
                     invitation.size(), " with an id of ", invitation.unique_id().size(),
                     " bytes; a position of ", size_, " and ", options.id.size(),
                     " bytes are possible"));
    return status_;
  }
  std::ranges::copy(invitation.unique_id(), options.id.begin());
  const auto on_abort = [this](const std::string& reason) {
    v1::ControlMessage message;
    message.mutable_end_epoch()->set_reason(reason);
    Send(std::move(message));
  };
  collective_ = std::make_unique<cluster::NcclCollective>(
      *api_, clock_, threads_, options,
      cluster::NcclHandlers{.on_abort = on_abort, .on_stuck = on_stuck_});
  return collective_.get();
}

void NcclEpochs::Abort(const std::string& reason) {
  if (collective_) collective_->Abort(reason);
}

bool NcclEpochs::Left() {
  // Until the collective has ended, the buffers must stay where they are.
  if (collective_ && !collective_->Ended()) return false;
  collective_.reset();
  return true;
}

void NcclEpochs::Send(v1::ControlMessage message) {
  if (link_ != nullptr) link_->Send(std::move(message));
}

}  // namespace epic::worker
