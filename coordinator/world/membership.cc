#include "coordinator/world/membership.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status.h"

namespace epic::coordinator {
namespace {

// Beyond any real model or machine: a hello must not make the coordinator allocate without limit.
constexpr int kLayersMax = 10'000;
constexpr int kExpertsMax = 100'000;
constexpr int kEpochRanksMax = 4096;

std::string WiresOf(const v1::WorkerIdentity& identity) {
  if (identity.address().empty()) return "shared memory alone";
  return identity.run_dir().empty() ? "tcp alone" : "tcp and shared memory";
}

absl::Status CheckShape(const ModelShape& shape) {
  if (shape.layer_count < 1 || shape.layer_count > kLayersMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer_count: ", shape.layer_count, ", 1 to ", kLayersMax, " are possible"));
  }
  if (shape.first_expert_layer < 0 || shape.first_expert_layer > shape.layer_count) {
    return absl::InvalidArgumentError(absl::StrCat("first_expert_layer: ", shape.first_expert_layer,
                                                   " of ", shape.layer_count, " layers"));
  }
  if (shape.expert_count < 1 || shape.expert_count > kExpertsMax) {
    return absl::InvalidArgumentError(absl::StrCat("expert_count: ", shape.expert_count, ", 1 to ",
                                                   kExpertsMax, " are possible"));
  }
  return absl::OkStatus();
}

absl::Status CheckEpoch(const v1::WorkerIdentity& identity) {
  const int ranks = identity.epoch_ranks();
  if (ranks < 0 || ranks > kEpochRanksMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("epoch_ranks: ", ranks, ", 0 to ", kEpochRanksMax, " are possible"));
  }
  if (ranks == 0) return absl::OkStatus();
  if (!identity.attention() || !identity.experts()) {
    return absl::InvalidArgumentError(
        "epoch_ranks: a worker that steps with others has both roles");
  }
  if (identity.holds_all_experts()) {
    return absl::InvalidArgumentError(
        "holds_all_experts: a worker that steps with others holds its share of them");
  }
  const int position = identity.epoch_position() - 1;
  if (identity.epoch() != 0 && (position < 0 || position >= ranks)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "epoch_position: ", identity.epoch_position(), ", 1 to ", ranks, " are possible"));
  }
  return absl::OkStatus();
}

}  // namespace

ModelShape ShapeOf(const v1::WorkerIdentity& identity) {
  return {.layer_count = identity.layer_count(),
          .first_expert_layer = identity.first_expert_layer(),
          .expert_count = identity.expert_count()};
}

absl::StatusOr<int> Membership::Join(const v1::ControlHello& hello, absl::Time now) {
  Member member{.generation = hello.generation(), .identity = hello.worker(), .joined_at = now};
  // Such a hello comes from the smallest of workers, which serves by itself.
  if (!hello.has_worker()) {
    member.identity.set_attention(true);
    member.identity.set_experts(true);
    member.identity.set_holds_all_experts(true);
  }
  const v1::WorkerIdentity& identity = member.identity;
  RETURN_IF_ERROR(CheckIdentity(member));
  // Last, because it remembers the class of the first worker that passes.
  RETURN_IF_ERROR(CheckClass(identity.profile(), identity.checkpoint()));
  // The first rank whose experts are placed decides which model this world serves.
  if (!member.holds_all_experts() && !shape_) shape_ = ShapeOf(identity);
  // Nothing may fail behind this: a number is never used twice within a term (protocol.md 1.2).
  const int rank = next_rank_++;
  CHECK(members_.emplace(rank, std::move(member)).second) << "rank " << rank;
  last_join_at_ = now;
  return rank;
}

absl::Status Membership::CheckIdentity(const Member& member) const {
  const v1::WorkerIdentity& identity = member.identity;
  if (!identity.attention() && !identity.experts()) {
    return absl::InvalidArgumentError("roles: a worker has neither attention nor experts");
  }
  RETURN_IF_ERROR(CheckEpoch(identity));
  if (member.holds_all_experts()) {
    if (identity.attention() && identity.experts()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "holds_all_experts: a worker that holds all experts has both roles");
  }
  if (member.exchanges_messages()) RETURN_IF_ERROR(CheckReach(identity));
  return CheckModel(identity);
}

absl::Status Membership::CheckModel(const v1::WorkerIdentity& identity) const {
  const ModelShape shape = ShapeOf(identity);
  RETURN_IF_ERROR(CheckShape(shape));
  if (identity.expert_slots() < 0) {
    return absl::InvalidArgumentError(absl::StrCat("expert_slots: ", identity.expert_slots()));
  }
  // Layers and experts are numbers in all messages, so all must count alike.
  if (shape_ && !(*shape_ == shape)) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "the worker's model has layers %d to %d with %d experts, this world's %d to %d with %d",
        shape.first_expert_layer, shape.layer_count, shape.expert_count, shape_->first_expert_layer,
        shape_->layer_count, shape_->expert_count));
  }
  return absl::OkStatus();
}

// A rank without a way to its peers would take sequences, and each would wait for its deadline.
absl::Status Membership::CheckReach(const v1::WorkerIdentity& identity) const {
  if (identity.address().empty() && identity.run_dir().empty()) {
    return absl::InvalidArgumentError(
        "address: other ranks can reach this worker neither over tcp nor through shared memory; "
        "--transport shm needs --run-dir");
  }
  for (const auto& [rank, member] : members_) {
    const v1::WorkerIdentity& peer = member.identity;
    // Rows go from attention to experts, and answers back: two ranks of one role never meet.
    const bool exchange = (identity.attention() && peer.experts()) ||
                          (identity.experts() && peer.attention());
    if (!member.exchanges_messages() || !member.refusal.empty() || !exchange) continue;
    const bool tcp = !identity.address().empty() && !peer.address().empty();
    // Shared memory needs the same machine; the folders may differ.
    const bool memory = !identity.run_dir().empty() && !peer.run_dir().empty() &&
                        identity.host() == peer.host();
    if (tcp || memory) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "--transport: no wire connects this worker with rank ", rank, "; this one offers ",
        WiresOf(identity), ", rank ", rank, " offers ", WiresOf(peer),
        identity.host() == peer.host() ? "" : ", and they are on two machines"));
  }
  return absl::OkStatus();
}

absl::Status Membership::CheckClass(const std::string& profile, const std::string& checkpoint) {
  // A worker may join before it knows its class; then the first WorkerReady decides.
  if (profile_.empty()) {
    profile_ = profile;
    checkpoint_ = checkpoint;
    return absl::OkStatus();
  }
  if (profile.empty() || (profile == profile_ && checkpoint == checkpoint_)) {
    return absl::OkStatus();
  }
  // A sequence may go on at any rank: other bits would come out in the middle of its answer.
  return absl::FailedPreconditionError(absl::StrCat("the worker has profile ", profile,
                                                    " and checkpoint ", checkpoint, ", this world ",
                                                    profile_, " and ", checkpoint_));
}

Member* Membership::Find(int rank) {
  const auto at = members_.find(rank);
  return at == members_.end() ? nullptr : &at->second;
}

const Member* Membership::Find(int rank) const {
  const auto at = members_.find(rank);
  return at == members_.end() ? nullptr : &at->second;
}

Member& Membership::at(int rank) {
  Member* const member = Find(rank);
  CHECK(member != nullptr) << "rank " << rank << " is not in the world";
  return *member;
}

const Member& Membership::at(int rank) const {
  const Member* const member = Find(rank);
  CHECK(member != nullptr) << "rank " << rank << " is not in the world";
  return *member;
}

std::vector<int> Membership::RanksLostTogether(int rank) const {
  const Member* const member = Find(rank);
  if (member == nullptr) return {};
  const uint64_t epoch = member->identity.epoch();
  // A rank that waits for its epoch to form shares nothing with others yet.
  if (epoch == 0) return {rank};
  std::vector<int> ranks;
  for (const auto& [other, of_other] : members_) {
    if (of_other.identity.epoch() == epoch) ranks.push_back(other);
  }
  return ranks;
}

}  // namespace epic::coordinator
