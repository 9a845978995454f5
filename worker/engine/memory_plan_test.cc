#include "worker/engine/memory_plan.h"

#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::worker {
namespace {

using ::testing::HasSubstr;

constexpr MemoryNeeds kNeeds{.weights_bytes = 1000,
                             .embedding_bytes = 100,
                             .loading_bytes = 50,
                             .buffers_bytes = 50,
                             .page_bytes = 10};

MemoryLimits Limits(int64_t available) {
  return {
      .available_bytes = available, .utilization = 0.5, .max_model_len = 640, .max_num_seqs = 4};
}

TEST(MemoryPlanTest, GivesPagesWhatTheShareLeaves) {
  const auto plan = PlanMemory(kNeeds, Limits(3000));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->page_count, 30);  // (0.5 · 3000 − 1200) / 10
  EXPECT_EQ(plan->total_bytes(), 1500);
  EXPECT_THAT(plan->ToString(), HasSubstr("30 pages of 64 tokens = 1920 tokens, 3.0 sequences"));
}

TEST(MemoryPlanTest, CountsSlotsForExperts) {
  MemoryNeeds needs = kNeeds;
  needs.expert_slots = 7;
  needs.spare_slots = 2;
  needs.expert_bytes = 20;
  needs.exchange_bytes = 10;
  const auto plan = PlanMemory(needs, Limits(3000));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->page_count, 15);  // (0.5 · 3000 − 1350) / 10
  EXPECT_THAT(plan->ToString(), HasSubstr("7 slots of 20 B, 2 of them spare"));
}

TEST(MemoryPlanTest, ARankOfExpertsAloneHasNoPages) {
  const MemoryNeeds needs{.expert_slots = 7, .expert_bytes = 100, .page_bytes = 0};
  const auto plan = PlanMemory(needs, Limits(1400));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->page_count, 0);
  EXPECT_EQ(plan->total_bytes(), 700);
  EXPECT_FALSE(PlanMemory(needs, Limits(1399)).ok());
}

TEST(MemoryPlanTest, TakesNoMoreThanAllSequencesCanUse) {
  EXPECT_EQ(PlanMemory(kNeeds, Limits(1'000'000))->page_count, 40);
}

TEST(MemoryPlanTest, TakesTheCacheThatWasAskedFor) {
  MemoryLimits limits = Limits(3000);
  limits.kv_cache_bytes = 159;
  EXPECT_EQ(PlanMemory(kNeeds, limits)->page_count, 15);
}

TEST(MemoryPlanTest, RefusesAModelThatDoesNotFitWithTheShortfall) {
  const auto plan = PlanMemory(kNeeds, Limits(2000));
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(plan.status().message(), HasSubstr("(200 bytes) short"));
}

TEST(MemoryPlanTest, RefusesPagesThatDoNotHoldOneLongestSequence) {
  const auto plan = PlanMemory(kNeeds, Limits(2590));
  EXPECT_THAT(plan.status().message(), HasSubstr("--max-model-len 640"));
  EXPECT_THAT(plan.status().message(), HasSubstr("(5 bytes) short"));
  EXPECT_TRUE(PlanMemory(kNeeds, Limits(2600)).ok());
}

TEST(MemoryPlanTest, RefusesACacheThatDoesNotFitBesideTheModel) {
  MemoryLimits limits = Limits(1500);
  limits.kv_cache_bytes = 400;
  EXPECT_THAT(PlanMemory(kNeeds, limits).status().message(), HasSubstr("(100 bytes) short"));
}

TEST(MemoryPlanTest, ReadsTheSmallerOfMachineAndControlGroup) {
  const std::string root = ::testing::TempDir() + "memory_plan_test";
  std::filesystem::remove_all(root);
  const auto write = [&](const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root + path).parent_path());
    std::ofstream(root + path) << text;
  };
  EXPECT_FALSE(AvailableMemoryBytes(root + "/none").ok());
  write("/proc/meminfo", "MemTotal:  9000 kB\nMemAvailable:     1000 kB\n");
  EXPECT_EQ(*AvailableMemoryBytes(root), 1'024'000);
  write("/sys/fs/cgroup/memory.max", "500000\n");
  write("/sys/fs/cgroup/memory.current", "200000\n");
  EXPECT_EQ(*AvailableMemoryBytes(root), 300'000);
  write("/sys/fs/cgroup/memory.stat", "anon 5\ninactive_file 70000\n");
  EXPECT_EQ(*AvailableMemoryBytes(root), 370'000);
  write("/sys/fs/cgroup/memory.max", "max\n");
  EXPECT_EQ(*AvailableMemoryBytes(root), 1'024'000);
}

TEST(MemoryPlanTest, PrintsBytesForPeople) {
  EXPECT_EQ(BytesToString(0), "0 B");
  EXPECT_EQ(BytesToString(1023), "1023 B");
  EXPECT_EQ(BytesToString(1536), "1.5 KiB");
  EXPECT_EQ(BytesToString(int64_t{3} << 30), "3.0 GiB");
}

}  // namespace
}  // namespace epic::worker
