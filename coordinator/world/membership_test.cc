#include "coordinator/world/membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const absl::Time kNow = absl::UnixEpoch();

v1::ControlHello Hello(bool attention, bool experts) {
  v1::ControlHello hello;
  hello.set_generation(1);
  v1::WorkerIdentity& worker = *hello.mutable_worker();
  worker.set_attention(attention);
  worker.set_experts(experts);
  worker.set_profile("fma");
  worker.set_checkpoint("c");
  worker.set_address("10.0.0.1:7000");
  worker.set_layer_count(4);
  worker.set_first_expert_layer(1);
  worker.set_expert_count(10);
  return hello;
}

TEST(Membership, NumbersAscendAndAreNeverUsedAgain) {
  Membership members;
  EXPECT_EQ(*members.Join(Hello(true, true), kNow), 0);
  EXPECT_EQ(*members.Join(Hello(true, false), kNow + absl::Seconds(1)), 1);
  EXPECT_EQ(members.last_join_at(), kNow + absl::Seconds(1));
  members.Remove(1);
  EXPECT_EQ(members.Find(1), nullptr);
  EXPECT_EQ(*members.Join(Hello(false, true), kNow), 2);
  EXPECT_EQ(members.count(), 2);
  EXPECT_TRUE(members.at(2).mapped());
  members.at(2).refusal = "it lies";
  EXPECT_FALSE(members.at(2).mapped());
}

TEST(Membership, TheFirstRankDecidesTheModelAndTheClass) {
  Membership members;
  v1::ControlHello strange = Hello(true, true);
  strange.mutable_worker()->set_layer_count(0);
  EXPECT_EQ(members.Join(strange, kNow).status().code(), absl::StatusCode::kInvalidArgument);
  // One that was refused decides nothing.
  EXPECT_FALSE(members.shape());
  ASSERT_TRUE(members.Join(Hello(true, true), kNow).ok());
  EXPECT_EQ(members.shape()->expert_total(), 30);

  v1::ControlHello other = Hello(true, true);
  other.mutable_worker()->set_expert_count(11);
  EXPECT_THAT(std::string(members.Join(other, kNow).status().message()),
              HasSubstr("with 11 experts, this world's 1 to 4 with 10"));
  other = Hello(true, true);
  other.mutable_worker()->set_profile("amx");
  EXPECT_EQ(members.Join(other, kNow).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(members.CheckClass("", "").ok());
  EXPECT_FALSE(members.CheckClass("fma", "d").ok());
  EXPECT_EQ(members.count(), 1);
}

TEST(Membership, RanksOfAnEpochAreLostTogether) {
  Membership members;
  v1::ControlHello hello = Hello(true, true);
  hello.mutable_worker()->clear_address();
  hello.mutable_worker()->set_epoch(77);
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(members.Join(hello, kNow).ok());
  ASSERT_TRUE(members.Join(Hello(true, true), kNow).ok());
  EXPECT_THAT(members.RanksLostTogether(1), ElementsAre(0, 1));
  EXPECT_THAT(members.RanksLostTogether(2), ElementsAre(2));
  EXPECT_THAT(members.RanksLostTogether(9), IsEmpty());
  EXPECT_DEATH(members.at(9), "rank 9 is not in the world");
}

}  // namespace
}  // namespace epic::coordinator
