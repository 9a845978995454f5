#include "coordinator/world/epochs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace epic::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::IsNull;
using testing::NotNull;

constexpr int kExperts = 6;

class EpochsTest : public testing::Test {
 protected:
  // A worker for epochs of `size`; where a launcher made the communicator, of that number.
  Member Worker(int size, uint64_t launched = 0, int position = -1) {
    Member member{.generation = ++generation_};
    v1::WorkerIdentity& identity = member.identity;
    identity.set_attention(true);
    identity.set_experts(true);
    identity.set_layer_count(2);
    identity.set_first_expert_layer(1);
    identity.set_expert_count(kExperts);
    identity.set_expert_slots((kExperts + size - 1) / size);
    identity.set_epoch_ranks(size);
    identity.set_epoch(launched);
    identity.set_epoch_position(position + 1);
    return member;
  }
  Epoch* Join(int rank, const Member& member) {
    const absl::StatusOr<Epoch*> joined = epochs_.Join(rank, member);
    EXPECT_TRUE(joined.ok()) << joined.status();
    return joined.ok() ? *joined : nullptr;
  }
  v1::EpochId Id(uint64_t epoch, const std::string& id) {
    v1::EpochId message;
    message.set_epoch(epoch);
    message.set_unique_id(id);
    return message;
  }
  static std::vector<int> RanksOf(const Epochs::Invitations& invitations) {
    std::vector<int> ranks;
    for (const auto& [rank, invitation] : invitations) ranks.push_back(rank);
    return ranks;
  }

  ExpertProofs proofs_;
  Epochs epochs_{7, 1, proofs_};
  uint64_t generation_ = 0;
};

TEST_F(EpochsTest, AnEpochIsOfRanksThatWantTheSameSize) {
  EXPECT_THAT(Join(4, Worker(2)), IsNull());
  EXPECT_THAT(Join(5, Worker(3)), IsNull());
  const Epoch* const first = Join(6, Worker(2));
  ASSERT_THAT(first, NotNull());
  EXPECT_EQ(first->number, 1u);
  EXPECT_THAT(first->ranks, ElementsAre(4, 6));
  EXPECT_THAT(Join(8, Worker(3)), IsNull());
  const Epoch* const second = Join(9, Worker(3));
  ASSERT_THAT(second, NotNull());
  EXPECT_EQ(second->number, 2u);
  EXPECT_THAT(second->ranks, ElementsAre(5, 8, 9));
  EXPECT_EQ(Join(10, Worker(1))->number, 3u);
  EXPECT_EQ(epochs_.Find(6)->number, 1u);
}

TEST_F(EpochsTest, TheFirstMakesTheIdAndAllAreTold) {
  Join(3, Worker(2));
  const Epoch* const epoch = Join(4, Worker(2));
  const Epochs::Invitations question = epochs_.FirstInvitations(*epoch);
  EXPECT_THAT(RanksOf(question), ElementsAre(3));
  EXPECT_FALSE(question[0].second.has_map());
  EXPECT_THAT(epochs_.TakeId(4, Id(1, "x")), IsEmpty());  // was not asked
  EXPECT_THAT(epochs_.TakeId(3, Id(9, "x")), IsEmpty());  // of another epoch
  EXPECT_THAT(epochs_.TakeId(3, Id(1, "")), IsEmpty());
  const Epochs::Invitations told = epochs_.TakeId(3, Id(1, "x"));
  EXPECT_THAT(RanksOf(told), ElementsAre(3, 4));
  EXPECT_THAT(epochs_.TakeId(3, Id(1, "y")), IsEmpty());  // has told
  const v1::JoinEpoch& invitation = told[1].second;
  EXPECT_EQ(invitation.rank(), 1);
  EXPECT_EQ(invitation.size(), 2);
  EXPECT_EQ(invitation.unique_id(), "x");
  EXPECT_THAT(invitation.ranks(), ElementsAre(3, 4));
  // Half of the experts, and a map that names all of them by the world's ranks.
  EXPECT_EQ(invitation.experts().layers(0).experts_size(), kExperts / 2);
  const auto map = cluster::ExpertMapFrom(invitation.map());
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->unhosted_count(), 0);
  EXPECT_THAT(map->replicas[1][invitation.experts().layers(0).experts(0)], ElementsAre(4));
}

TEST_F(EpochsTest, WithOneRankTheEpochIsLost) {
  Join(1, Worker(2));
  Join(2, Worker(2));
  epochs_.Leave(1);
  EXPECT_THAT(epochs_.Find(2), IsNull());
  EXPECT_THAT(epochs_.TakeId(1, Id(1, "x")), IsEmpty());
  epochs_.Leave(2);
  // What a process has loaded it keeps, and says so: nobody loads it again.
  Member keeps = Worker(2);
  v1::LayerExperts& held = *keeps.identity.add_held_experts();
  held.set_layer(1);
  for (const int expert : {5, 0, 3}) held.add_experts(expert);
  Join(3, Worker(2));
  const Epoch* const next = Join(4, keeps);
  ASSERT_THAT(next, NotNull());
  EXPECT_EQ(next->number, 2u);
  EXPECT_FALSE(next->group.hosts().loading(4));
  EXPECT_TRUE(next->group.hosts().loading(3));
}

TEST_F(EpochsTest, ALaunchedEpochKeepsItsPositionsAndNeedsNoId) {
  EXPECT_THAT(Join(0, Worker(2, 77, 1)), IsNull());
  EXPECT_THAT(Join(1, Worker(2, 78, 0)), IsNull());  // of another communicator
  const Epoch* const epoch = Join(2, Worker(2, 77, 0));
  ASSERT_THAT(epoch, NotNull());
  EXPECT_EQ(epoch->number, 77u);
  EXPECT_THAT(epoch->ranks, ElementsAre(2, 0));
  const Epochs::Invitations told = epochs_.FirstInvitations(*epoch);
  EXPECT_THAT(RanksOf(told), ElementsAre(2, 0));
  EXPECT_TRUE(told[1].second.has_map());
  EXPECT_EQ(told[1].second.rank(), 1);
}

TEST_F(EpochsTest, ALaunchedEpochThatJoinsAgainGetsNewerMaps) {
  Join(0, Worker(2, 77, 0));
  ASSERT_THAT(Join(1, Worker(2, 77, 1)), NotNull());
  for (const int rank : {0, 1}) epochs_.Leave(rank);
  for (const int rank : {2, 3}) {
    Member member = Worker(2, 77, rank - 2);
    member.identity.set_epoch_map(rank == 2 ? 4 : 3);
    v1::LayerExperts& held = *member.identity.add_held_experts();
    held.set_layer(1);
    for (int expert = rank - 2; expert < kExperts; expert += 2) held.add_experts(expert);
    Join(rank, member);
  }
  const Epoch* const epoch = epochs_.Find(2);
  ASSERT_THAT(epoch, NotNull());
  EXPECT_EQ(epoch->group.map().version.number, 5u);
  // What is held is mapped: a world that steps already cannot wait for loads.
  EXPECT_EQ(epoch->group.hosts().unhosted_count(), 0);
  EXPECT_THAT(epoch->group.map().replicas[1][1], ElementsAre(3));
}

TEST_F(EpochsTest, AnEpochWithoutRoomForAllExpertsIsNotFormed) {
  Member small = Worker(2);
  small.identity.set_expert_slots(2);
  Join(0, Worker(2));
  const absl::StatusOr<Epoch*> joined = epochs_.Join(1, small);
  EXPECT_THAT(std::string(joined.status().message()),
              HasSubstr("lacks 1 slots for the 6 experts of this model"));
  EXPECT_THAT(epochs_.Find(0), IsNull());
  // It leaves, and one with enough room takes its place.
  epochs_.Leave(1);
  EXPECT_THAT(Join(2, Worker(2)), NotNull());
}

}  // namespace
}  // namespace epic::coordinator
