#include "worker/experts/loaded_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "base/sim_loop.h"
#include "kernels/number.h"
#include "kernels/reference/reference_backend.h"
#include "model/local_exchange.h"
#include "model/testing/tiny_checkpoint.h"

namespace epic::worker {
namespace {

using testing::HasSubstr;

// TinyConfig: three layers, the first dense, 12 experts.
class LoadedExpertsTest : public testing::Test {
 protected:
  LoadedExpertsTest() : folder_(model::WriteCheckpoint(model::TinyConfig(), Tensors())) {
    config_ = *model::ReadModelConfig(folder_);
    checkpoint_ = *model::Checkpoint::Open(folder_);
    experts_.emplace(loop_, config_, *checkpoint_, *backend_, 3, 1000);
  }

  static model::TestTensors Tensors() {
    model::TestTensors tensors = model::TinyTensors(model::TinyConfig(), 1);
    tensors.erase("model.layers.2.mlp.experts.7.up_proj.weight");
    return tensors;
  }

  ExpertOutcome Fill(uint64_t order, std::map<ExpertName, uint64_t> wanted, int turns) {
    experts_->Order({order, std::move(wanted)});
    for (int turn = 1;; ++turn) {
      EXPECT_TRUE(experts_->loading());
      if (auto outcome = experts_->Advance()) {
        EXPECT_EQ(turn, turns);
        EXPECT_FALSE(experts_->loading());
        EXPECT_EQ(outcome->order, order);
        return *outcome;
      }
    }
  }

  SimLoop loop_;
  const std::string folder_;
  std::unique_ptr<kernels::Backend> backend_ = kernels::MakeReferenceBackend({});
  model::ModelConfig config_;
  std::unique_ptr<model::Checkpoint> checkpoint_;
  std::optional<LoadedExperts> experts_;
};

TEST_F(LoadedExpertsTest, LoadsOneATurnAndKeepsWhatIsStillWanted) {
  const ExpertOutcome first = Fill(1, {{{1, 2}, 0}, {{1, 3}, 0}, {{2, 0}, 0}}, 3);
  ASSERT_TRUE(first.status.ok()) << first.status;
  EXPECT_EQ(first.proofs.size(), 3);
  EXPECT_TRUE(experts_->Holds(1, 2));
  EXPECT_TRUE(experts_->Holds(2, 0));
  EXPECT_FALSE(experts_->Holds(2, 2));
  EXPECT_EQ(experts_->order_total_bytes(), 3000);

  const ExpertOutcome second = Fill(2, {{{1, 2}, first.proofs.at({1, 2})}, {{2, 5}, 0}}, 1);
  ASSERT_TRUE(second.status.ok()) << second.status;
  EXPECT_FALSE(experts_->Holds(1, 3));
  EXPECT_TRUE(experts_->Holds(2, 5));
  EXPECT_EQ(experts_->held_count(), 2);
  EXPECT_EQ(second.loaded_bytes, first.loaded_bytes / 3);
  EXPECT_EQ(experts_->order_total_bytes(), 1000);
  EXPECT_EQ(second.proofs.at({1, 2}), first.proofs.at({1, 2}));
}

TEST_F(LoadedExpertsTest, RefusesWithTheReasonAndServesOn) {
  ASSERT_TRUE(Fill(1, {{{1, 2}, 0}}, 1).status.ok());
  const auto refused = [&](std::map<ExpertName, uint64_t> wanted, const std::string& why) {
    EXPECT_THAT(std::string(Fill(2, std::move(wanted), 1).status.message()), HasSubstr(why));
    EXPECT_TRUE(experts_->Holds(1, 2));
  };
  refused({{{1, 0}, 0}, {{1, 1}, 0}, {{1, 2}, 0}, {{1, 3}, 0}}, "wants 4 experts; this rank has 3");
  refused({{{0, 1}, 0}, {{1, 2}, 0}}, "no expert 1 in layer 0");
  refused({{{1, 12}, 0}, {{1, 2}, 0}}, "no expert 12 in layer 1");
  refused({{{1, 2}, 0}, {{2, 7}, 0}}, "experts.7.up_proj.weight is missing");
  refused({{{1, 2}, 0}, {{2, 6}, 99}}, "expert 6 of layer 2 differs from another rank's");
  EXPECT_FALSE(experts_->Holds(2, 6));
  EXPECT_FALSE(experts_->Holds(-1, 0));
  EXPECT_FALSE(experts_->Holds(1, -1));
  EXPECT_FALSE(experts_->Holds(0, 0));
}

TEST_F(LoadedExpertsTest, ANewOrderTakesThePlaceOfAnUnfinishedOne) {
  experts_->Order({1, {{{1, 2}, 0}, {{1, 3}, 0}}});
  EXPECT_FALSE(experts_->Advance().has_value());
  EXPECT_EQ(Fill(2, {{{1, 3}, 0}}, 1).proofs.size(), 1);
  EXPECT_FALSE(experts_->Holds(1, 2));
}

TEST_F(LoadedExpertsTest, ComputesWhatTheWholeModelsExpertsDo) {
  const model::TestTensors tensors = model::TinyTensors(model::TinyConfig(), 1);
  const auto whole = *model::Checkpoint::Open(model::WriteCheckpoint(model::TinyConfig(), tensors));
  const auto model = *model::Model::Load(config_, *whole, *backend_);
  ASSERT_TRUE(Fill(1, {{{2, 4}, 0}, {{2, 9}, 0}}, 2).status.ok());
  const int64_t hidden = config_.hidden_size;
  std::vector<kernels::BF16> rows(2 * hidden);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i] = kernels::ToBF16(0.01f * static_cast<float>(i % 37));
  }
  const std::vector<kernels::ExpertRow> pairs = {{0, 4}, {1, 4}, {1, 9}};
  const auto tensor = [&](void* data, int64_t count) {
    return kernels::Tensor{kernels::DType::kBF16, count, hidden, data};
  };
  std::vector<uint16_t> out(3 * hidden), expected(3 * hidden);
  experts_->Compute(2, tensor(rows.data(), 2), pairs, tensor(out.data(), 3));
  std::vector<const kernels::Mlp*> all;
  for (const auto& expert : model->layers()[2].experts) all.push_back(expert.get());
  backend_->Experts(all, tensor(rows.data(), 2), pairs, tensor(expected.data(), 3));
  EXPECT_EQ(out, expected);
}

}  // namespace
}  // namespace epic::worker
