#include "worker/exchange/nccl_epochs.h"

#include "base/sim_loop.h"
#include "cluster/transport/testing/fake_nccl.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::worker {
namespace {

using testing::HasSubstr;
using testing::IsNull;
using testing::NotNull;

class Link : public cluster::ControlLink {
 public:
  void Send(v1::ControlMessage message) override { sent.push_back(std::move(message)); }
  std::vector<v1::ControlMessage> sent;
};

// Two ranks; the test is the coordinator.
class NcclEpochsTest : public testing::Test {
 protected:
  static constexpr int kRanks = 2;

  NcclEpochsTest() {
    for (int rank = 0; rank < kRanks; ++rank) {
      const std::shared_ptr<cluster::NcclApi> card(&nccl_.card(rank), [](auto*) {});
      epochs_.push_back(
          std::make_unique<NcclEpochs>(card, clock_, RealThreads(), kRanks,
                                       [](const std::string& why) { ADD_FAILURE() << why; }));
      epochs_[rank]->OnLink(&links_[rank]);
    }
  }
  ~NcclEpochsTest() override {
    for (int rank = 0; rank < kRanks; ++rank) Leave(rank);
    EXPECT_EQ(nccl_.held_count(), 0);
  }
  void Invite(int rank, int position, int size, const std::string& id) {
    v1::ControlMessage message;
    message.mutable_join_epoch()->set_epoch(epoch_);
    message.mutable_join_epoch()->set_rank(position);
    message.mutable_join_epoch()->set_size(size);
    message.mutable_join_epoch()->set_unique_id(id);
    epochs_[rank]->OnMessage(message);
  }
  // Asks the first for an id, and tells it to both.
  void InviteAll(const std::vector<int>& ranks) {
    ++epoch_;
    Invite(ranks[0], 0, kRanks, "");
    const v1::ControlMessage answer = links_[ranks[0]].sent.back();
    ASSERT_EQ(answer.epoch_id().epoch(), epoch_);
    for (int position = 0; position < kRanks; ++position) {
      Invite(ranks[position], position, kRanks, answer.epoch_id().unique_id());
    }
  }
  void Leave(int rank) {
    epochs_[rank]->Abort("it leaves");
    while (!epochs_[rank]->Left()) {
    }
  }
  // Whether all ranks come to an all-reduce; the epoch's error if it has ended.
  absl::Status Meet() {
    int64_t values[kRanks] = {1, 1};
    std::vector<std::pair<cluster::Collective*, cluster::Collective::Operation>> open;
    for (int rank = 0; rank < kRanks; ++rank) {
      cluster::Collective* collective = *epochs_[rank]->collective();
      open.emplace_back(collective,
                        collective->StartAllReduce(cluster::Reduction::kSum, {&values[rank], 1}));
    }
    while (!open.empty()) {
      for (auto at = open.begin(); at != open.end();) {
        const absl::StatusOr<bool> done = at->first->Done(at->second);
        if (!done.ok()) return done.status();
        at = *done ? open.erase(at) : std::next(at);
      }
    }
    EXPECT_EQ(values[0], kRanks);
    return absl::OkStatus();
  }
  SimLoop clock_;
  cluster::FakeNccl nccl_{kRanks};
  Link links_[kRanks];
  uint64_t epoch_ = 0;
  std::vector<std::unique_ptr<NcclEpochs>> epochs_;
};

TEST_F(NcclEpochsTest, AnEpochFollowsAnEpoch) {
  v1::WorkerIdentity identity;
  epochs_[0]->Introduce(identity);
  EXPECT_EQ(identity.epoch_ranks(), kRanks);
  EXPECT_THAT(*epochs_[0]->collective(), IsNull());
  InviteAll({1, 0});
  EXPECT_EQ((*epochs_[0]->collective())->rank(), 1);
  EXPECT_EQ((*epochs_[1]->collective())->rank(), 0);
  EXPECT_EQ(Meet(), absl::OkStatus());

  (*epochs_[0]->collective())->Abort("its card is lost");
  EXPECT_EQ(links_[0].sent.back().end_epoch().reason(), "rank 1: its card is lost");
  // The coordinator tells the other one, and both come again.
  v1::ControlMessage revoked;
  revoked.mutable_revoked()->set_reason("rank 1: its card is lost");
  for (int rank = 0; rank < kRanks; ++rank) {
    epochs_[rank]->OnMessage(revoked);
    epochs_[rank]->OnLink(nullptr);
    epochs_[rank]->OnLink(&links_[rank]);
  }
  // The invitation waits until the old epoch is left.
  InviteAll({1, 0});
  cluster::Collective* const old = *epochs_[1]->collective();
  int64_t value = 1;
  const auto operation = old->StartAllReduce(cluster::Reduction::kSum, {&value, 1});
  absl::StatusOr<bool> done = false;
  while (done.ok()) done = old->Done(operation);
  EXPECT_EQ(done.status(), absl::AbortedError("rank 1: its card is lost"));
  for (int rank = 0; rank < kRanks; ++rank) Leave(rank);
  EXPECT_THAT(*epochs_[1]->collective(), NotNull());
  EXPECT_EQ(Meet(), absl::OkStatus());
}

TEST_F(NcclEpochsTest, WithTheLinkAnEpochAndAnInvitationEnd) {
  InviteAll({0, 1});
  EXPECT_EQ(Meet(), absl::OkStatus());
  epochs_[0]->OnLink(nullptr);
  int64_t value = 1;
  cluster::Collective* const collective = *epochs_[0]->collective();
  const auto operation = collective->StartAllReduce(cluster::Reduction::kSum, {&value, 1});
  absl::StatusOr<bool> done = false;
  while (done.ok()) done = collective->Done(operation);
  EXPECT_THAT(std::string(done.status().message()), HasSubstr("link to the coordinator"));
  Leave(0);
  Leave(1);
  epochs_[0]->OnLink(&links_[0]);
  InviteAll({0, 1});
  epochs_[0]->OnLink(nullptr);
  EXPECT_THAT(*epochs_[0]->collective(), IsNull());
}

TEST_F(NcclEpochsTest, WhatCannotBeIsNamed) {
  Invite(0, 0, 3, std::string(128, 'x'));
  EXPECT_THAT(std::string(epochs_[0]->collective().status().message()),
              HasSubstr("position 0 of 3 with an id of 128 bytes"));
  nccl_.FailNext(1, "GetUniqueId", cluster::NcclResult::kSystemError);
  Invite(1, 0, 2, "");
  EXPECT_EQ(epochs_[1]->collective().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(links_[1].sent.back().end_epoch().reason(), HasSubstr("ncclGetUniqueId"));
}

}  // namespace
}  // namespace epic::worker
