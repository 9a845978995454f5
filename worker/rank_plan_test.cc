#include "worker/rank_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/testing/tiny_checkpoint.h"
#include "worker/device.h"

namespace epic::worker {
namespace {

using testing::HasSubstr;

WorkerOptions Options() {
  WorkerOptions options;
  options.model =
      model::WriteCheckpoint(model::TinyConfig(), model::TinyTensors(model::TinyConfig(), 1));
  options.threads = 1;
  options.max_num_batched_tokens = 16;
  options.max_num_seqs = 4;
  options.max_model_len = 64;
  return options;
}

TEST(RankPlanTest, ARankPlansWhatItsRolesHold) {
  WorkerOptions options = Options();
  const auto both = MakeRankPlan(options);
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ(both->expert_slots, 24);  // two layers of 12
  EXPECT_EQ(both->memory.needs.exchange_bytes, 0);

  options.roles = {"attention"};
  options.expert_ranks = 5;
  const auto attention = MakeRankPlan(options);
  ASSERT_TRUE(attention.ok()) << attention.status();
  EXPECT_EQ(attention->expert_slots, 0);
  EXPECT_EQ(attention->memory.needs.weights_bytes, both->memory.needs.weights_bytes);
  EXPECT_GT(attention->memory.page_count, 0);
  EXPECT_GT(attention->memory.needs.exchange_bytes, 0);

  options.roles = {"experts"};
  const auto experts = MakeRankPlan(options);
  ASSERT_TRUE(experts.ok()) << experts.status();
  EXPECT_EQ(experts->expert_slots, 6);              // 12 over 4 survivors of 5, in two layers
  EXPECT_EQ(experts->memory.needs.spare_slots, 0);  // as many as 12 over 5, rounded up
  EXPECT_EQ(experts->memory.page_count, 0);
  EXPECT_EQ(experts->memory.needs.weights_bytes, 0);
  EXPECT_THAT(experts->memory.ToString(), testing::Not(HasSubstr("KV pages")));
}

TEST(RankPlanTest, KeepsRoomForTheExpertsOfLostRanks) {
  model::ModelConfig config = *model::ReadModelConfig(Options().model);
  const auto slots = [&](int ranks, int losses) {
    const SlotCount count = CountSlots(config, ranks, losses);
    return std::pair(count.slots, count.spare);
  };
  EXPECT_EQ(slots(1, 1), std::pair(24, 0));
  EXPECT_EQ(slots(2, 0), std::pair(12, 0));
  EXPECT_EQ(slots(2, 1), std::pair(24, 12));
  EXPECT_EQ(slots(4, 2), std::pair(12, 6));
  EXPECT_EQ(slots(24, 1), std::pair(2, 0));
}

TEST(RankPlanTest, SaysWhatIsWrong) {
  WorkerOptions options = Options();
  options.max_model_len = 1 << 29;
  EXPECT_THAT(std::string(MakeRankPlan(options).status().message()),
              HasSubstr("--max-model-len: 536870912, the model has"));
  options = Options();
  options.expert_slots = 1 << 20;
  options.memory_utilization = 0.01;
  EXPECT_EQ(MakeRankPlan(options).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(RankPlanTest, RefusesDenseLayersBehindLayersWithExperts) {
  nlohmann::json config = model::TinyConfig();
  config["moe_layer_freq"] = 2;
  config["first_k_dense_replace"] = 0;
  WorkerOptions options = Options();
  options.model = model::WriteCheckpoint(config, model::TinyTensors(config, 1));
  EXPECT_THAT(std::string(MakeRankPlan(options).status().message()),
              HasSubstr("layer 1 has no experts and layer 0 has"));
}

TEST(RankPlanTest, ParsesTheDevice) {
  EXPECT_EQ(*ParseCard("cpu"), std::nullopt);
  EXPECT_EQ(*ParseCard("cuda"), 0);
  EXPECT_EQ(*ParseCard("cuda:3"), 3);
  for (const char* wrong : {"", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda0"}) {
    EXPECT_THAT(ParseCard(wrong).status().message(), HasSubstr("cpu, cuda or cuda:N")) << wrong;
  }
}

TEST(RankPlanTest, ACardRefusesWhatItDoesNotTakeByName) {
  WorkerOptions options = Options();
  options.device = "cuda";
  const auto message = [&] { return std::string(MakeRankPlan(options).status().message()); };
  EXPECT_THAT(message(), HasSubstr("kv_lora_rank"));  // of TinyConfig
  options.quantization = "int8";
  EXPECT_THAT(message(), HasSubstr("--quantization is int8"));
  options.quantization = "none";
  options.numerics = "fma";
  EXPECT_THAT(message(), HasSubstr("--numerics is fma"));
}

TEST(RankPlanTest, SaysThatThereIsNoCard) {
  WorkerOptions options = Options();
  options.model = "models/tiny-r1";
  options.device = "cuda:4095";
  const auto plan = MakeRankPlan(options);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(plan.status().message(), HasSubstr("--device cuda:4095"));
}

}  // namespace
}  // namespace epic::worker
