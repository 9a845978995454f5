// Membership: the ranks of the world. It checks what a worker says of itself when it joins, gives
// it a rank number, and keeps what is known of it until it is removed. A plain object.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/world/model_shape.h"
#include "proto/epic/v1/worker.pb.h"

namespace epic::coordinator {

struct Member {
  uint64_t generation = 0;
  v1::WorkerIdentity identity;
  absl::Time joined_at;
  std::optional<v1::WorkerReady> ready;  // once it takes sequences
  v1::LoadProgress load;
  v1::RankReport report;  // the newest
  std::string refusal;    // why the world has no use for it, though its link stays; else empty

  bool holds_all_experts() const { return identity.holds_all_experts(); }
  // Whether it steps together with the ranks of an epoch, and exchanges rows with them alone.
  bool steps_in_epoch() const { return identity.epoch_ranks() > 0; }
  // Whether it exchanges rows by messages.
  bool exchanges_messages() const { return !holds_all_experts() && !steps_in_epoch(); }
};

ModelShape ShapeOf(const v1::WorkerIdentity& identity);

class Membership {
 public:
  // Gives the worker the next rank number; numbers ascend and are never used again.
  // FailedPrecondition, naming both values, for a worker of another model, profile or checkpoint,
  // and for one that no transport connects with a rank that it must exchange rows with;
  // InvalidArgument, naming the field, for one that says what cannot be.
  absl::StatusOr<int> Join(const v1::ControlHello& hello, absl::Time now);
  // FailedPrecondition if a rank of this profile and checkpoint would give other bits than the
  // world's first rank. An empty profile is not known yet, and passes.
  absl::Status CheckClass(const std::string& profile, const std::string& checkpoint);
  void Remove(int rank) { members_.erase(rank); }

  // Null: not in the world. Valid until the rank is removed.
  Member* Find(int rank);
  const Member* Find(int rank) const;
  // The rank must be in the world.
  Member& at(int rank);
  const Member& at(int rank) const;
  const std::map<int, Member>& all() const { return members_; }
  int count() const { return static_cast<int>(members_.size()); }
  // The rank, and all that are lost with it because they share an epoch, ascending. Empty for a
  // rank that is not in the world.
  std::vector<int> RanksLostTogether(int rank) const;

  // The model of the first rank whose experts are placed; empty: none has joined so far.
  const std::optional<ModelShape>& shape() const { return shape_; }
  absl::Time last_join_at() const { return last_join_at_; }

 private:
  absl::Status CheckIdentity(const Member& member) const;
  absl::Status CheckModel(const v1::WorkerIdentity& identity) const;
  absl::Status CheckReach(const v1::WorkerIdentity& identity) const;

  std::map<int, Member> members_;
  int next_rank_ = 0;
  std::string profile_, checkpoint_;  // of the world, from its first rank on
  std::optional<ModelShape> shape_;
  absl::Time last_join_at_ = absl::InfinitePast();
};

}  // namespace epic::coordinator
