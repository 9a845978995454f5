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
  EXPECT_TRUE(members.at(2).exchanges_messages());
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

TEST(Membership, AWorkerSaysThatItHoldsAllExperts) {
  Membership members;
  v1::ControlHello hello = Hello(true, true);
  hello.mutable_worker()->set_holds_all_experts(true);
  hello.mutable_worker()->clear_address();
  EXPECT_FALSE(members.at(*members.Join(hello, kNow)).exchanges_messages());
  // It is not inferred from a missing address: `--transport shm` has none either.
  hello.mutable_worker()->set_holds_all_experts(false);
  EXPECT_THAT(std::string(members.Join(hello, kNow).status().message()),
              HasSubstr("--transport shm needs --run-dir"));
  hello.mutable_worker()->set_run_dir("/run");
  EXPECT_TRUE(members.at(*members.Join(hello, kNow)).exchanges_messages());
  hello = Hello(false, true);
  hello.mutable_worker()->set_holds_all_experts(true);
  EXPECT_THAT(std::string(members.Join(hello, kNow).status().message()), HasSubstr("both roles"));
}

TEST(Membership, RanksThatExchangeRowsNeedAWireInCommon) {
  const auto with = [](v1::ControlHello hello, const std::string& host, bool tcp, bool memory) {
    v1::WorkerIdentity& worker = *hello.mutable_worker();
    worker.set_host(host);
    if (!tcp) worker.clear_address();
    if (memory) worker.set_run_dir("/run");
    return hello;
  };
  Membership members;
  ASSERT_TRUE(members.Join(with(Hello(true, false), "a", false, true), kNow).ok());
  EXPECT_TRUE(members.Join(with(Hello(false, true), "a", true, true), kNow).ok());
  EXPECT_EQ(members.Join(with(Hello(false, true), "b", true, true), kNow).status().message(),
            "--transport: no wire connects this worker with rank 0; this one offers tcp and shared "
            "memory, rank 0 offers shared memory alone, and they are on two machines");
  const v1::ControlHello tcp = with(Hello(false, true), "a", true, false);
  EXPECT_THAT(std::string(members.Join(tcp, kNow).status().message()),
              HasSubstr("this one offers tcp alone, rank 0 offers shared memory alone"));
  // Two attention ranks exchange nothing.
  EXPECT_TRUE(members.Join(with(Hello(true, false), "a", true, true), kNow).ok());
}

TEST(Membership, RanksOfAnEpochAreLostTogether) {
  Membership members;
  v1::ControlHello hello = Hello(true, true);
  hello.mutable_worker()->set_holds_all_experts(true);
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
