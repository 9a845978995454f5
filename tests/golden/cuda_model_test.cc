// model/ on the CUDA backend over the emulated device, for a few steps.
#include <algorithm>
#include <cmath>

#include "gtest/gtest.h"
#include "kernels/cuda/backend.h"
#include "kernels/reference/reference_backend.h"
#include "model/testing/tiny_checkpoint.h"
#include "tests/golden/golden_backends.h"
#include "tests/golden/golden_run.h"
#include "tests/golden/tiny_r1.h"

namespace epic::golden {
namespace {

// Softmax without q_lora if not `sigmoid`.
nlohmann::json Config(bool sigmoid, bool fp8) {
  nlohmann::json config = model::TinyCudaConfig();
  if (!sigmoid) {
    config.update({{"model_type", "deepseek_v2"},
                   {"architectures", {"DeepseekV2ForCausalLM"}},
                   {"scoring_func", "softmax"},
                   {"topk_method", "group_limited_greedy"},
                   {"norm_topk_prob", false},
                   {"q_lora_rank", nullptr}});
  }
  if (fp8) {
    config["quantization_config"] = {{"quant_method", "fp8"},
                                     {"fmt", "e4m3"},
                                     {"activation_scheme", "dynamic"},
                                     {"weight_block_size", {128, 128}}};
  }
  return config;
}

class CudaModelTest : public testing::TestWithParam<bool> {};

TEST_P(CudaModelTest, StepsAreThoseOfTheReferenceInAnyMix) {
  const bool fp8 = GetParam();
  const nlohmann::json config = Config(fp8, fp8);
  const auto tensors = fp8 ? model::TinyFp8Tensors(config, 5) : model::TinyTensors(config, 5);
  const std::string folder = model::WriteCheckpoint(config, tensors);
  const auto device = kernels::MakeCudaBackend({});
  ASSERT_NE(device.backend, nullptr) << device.error;
  const auto reference = kernels::MakeReferenceBackend({.fp8_activations = true});
  const auto model = Loaded(folder, *device.backend);
  const auto oracle = Loaded(folder, *reference);
  ASSERT_TRUE(model != nullptr && oracle != nullptr);
  const std::vector<std::vector<int32_t>> sequences = {{3, 1, 4, 1, 5}, {92, 65, 35, 89, 79, 32}};
  const Logits logits = model->Run(sequences, OneByOne(sequences, 100));
  EXPECT_EQ(model->Run(sequences, SideBySide(sequences)), logits);
  const Logits expected = oracle->Run(sequences, OneByOne(sequences, 100));
  int close = 0;
  for (const auto& [key, row] : expected) {
    double error = 0, size = 0;
    for (size_t i = 0; i < row.size(); ++i) {
      error += std::pow(row[i] - logits.at(key)[i], 2);
      size += std::pow(row[i], 2);
    }
    if (error < 0.06 * 0.06 * size) ++close;
  }
  // Where two experts are nearly as good, a position may be another computation.
  EXPECT_GE(close, 9) << "of 11";
}

INSTANTIATE_TEST_SUITE_P(Weights, CudaModelTest, testing::Bool(), [](const auto& info) {
  return info.param ? "Fp8SigmoidWithQLora" : "Bf16SoftmaxWithoutQLora";
});

TEST(CudaModelTest, TinyR1BeginsItsAnswerAsTheOracle) {
  const auto device = kernels::MakeCudaBackend({});
  ASSERT_NE(device.backend, nullptr) << device.error;
  EXPECT_EQ(EqualAnswers(*device.backend, 1, 3), 1);
}

}  // namespace
}  // namespace epic::golden
