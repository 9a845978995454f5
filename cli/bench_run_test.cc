#include "cli/bench_run.h"

#include "gtest/gtest.h"
#include "kernels/reference/reference_backend.h"
#include "model/testing/tiny_checkpoint.h"

namespace epic::cli {
namespace {

// A second passes between any two looks at it.
class TickingClock : public Clock {
 public:
  absl::Time Now() const override { return absl::FromUnixSeconds(++seconds_); }

 private:
  mutable int64_t seconds_ = 0;
};

class BenchRunTest : public testing::Test {
 protected:
  BenchRunTest() : backend_(kernels::MakeReferenceBackend({})) {
    const nlohmann::json json = model::TinyConfig();
    const std::string folder = model::WriteCheckpoint(json, model::TinyTensors(json, 1));
    config_ = *model::ReadModelConfig(folder);
    model_ = *model::Model::Load(config_, **model::Checkpoint::Open(folder), *backend_);
  }

  int64_t DenseBytes() const {
    int64_t bytes = model_->head().packed_bytes;
    for (const model::Layer& layer : model_->layers()) {
      bytes += layer.attention->packed_bytes;
      bytes += layer.dense != nullptr ? layer.dense->packed_bytes : layer.shared->packed_bytes;
    }
    return bytes;
  }
  int64_t RecordBytes() const { return model_->kv_layout().record_bytes() * config_.layer_count; }
  int64_t ExpertBytes() const { return model_->layers().back().experts[0]->packed_bytes; }

  std::unique_ptr<kernels::Backend> backend_;
  model::ModelConfig config_;
  std::unique_ptr<model::Model> model_;
  TickingClock clock_;
};

TEST_F(BenchRunTest, CountsTheExpertsOfARowTheRestAndTheRecordsItSees) {
  BenchRun run(*model_, *backend_, clock_, {.context_max = 600});
  const int64_t of_a_row =
      DenseBytes() + config_.sparse_layer_count() * config_.experts_per_token * ExpertBytes();
  TimedStep step = run.Decode(1);
  EXPECT_EQ(step.seconds, 1);
  EXPECT_EQ(step.floor_bytes, of_a_row + RecordBytes());
  run.SetContext(600);  // more than is computed: the rest are copies
  step = run.Decode(1);
  EXPECT_EQ(step.floor_bytes, of_a_row + 601 * RecordBytes());
}

TEST_F(BenchRunTest, CountsAnExpertOnceForAllRowsOfAStep) {
  BenchRun run(*model_, *backend_, clock_,
               {.sequences = 9, .context_max = 70, .prompt_max = 40, .decode_max = 2});
  run.SetContext(70);
  const TimedStep prompt = run.Prefill(40);
  const int64_t experts = prompt.floor_bytes - DenseBytes() - 110 * RecordBytes();
  EXPECT_EQ(experts % ExpertBytes(), 0);
  EXPECT_GT(experts, config_.sparse_layer_count() * config_.experts_per_token * ExpertBytes());
  EXPECT_LE(experts, int64_t{config_.sparse_layer_count()} * config_.expert_count * ExpertBytes());

  run.SetContext(70);
  run.Decode(9);
  const TimedStep step = run.Decode(9);
  EXPECT_EQ((step.floor_bytes - DenseBytes() - 9 * 72 * RecordBytes()) % ExpertBytes(), 0);
}

}  // namespace
}  // namespace epic::cli
