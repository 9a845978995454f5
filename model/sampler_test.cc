#include "model/sampler.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::model {
namespace {

using testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

int32_t Draw(std::vector<float> logits, const SamplingParams& params, int position = 0,
             const std::vector<int32_t>& prompt = {}) {
  const std::vector<int32_t> generated(position, 0);
  return SampleToken(logits, params, prompt, generated);
}

// How often each id is drawn over many positions, without penalties.
std::vector<double> Frequencies(const std::vector<float>& logits, const SamplingParams& params) {
  constexpr int kDraws = 20000;
  std::vector<double> frequency(logits.size());
  for (int i = 0; i < kDraws; ++i) frequency[Draw(logits, params, i)] += 1.0 / kDraws;
  return frequency;
}

TEST(SamplerTest, GreedyTakesTheLowestOfEqualIds) {
  EXPECT_EQ(Draw({1, 5, 5, 2}, {.temperature = 0}), 1);
}

TEST(SamplerTest, PhiloxGivesThePublishedNumbers) {
  // Random123's known answer for an all-zero counter and key: 6627e8d5 e169c58d …
  EXPECT_EQ(
      UniformNumber(0, 0, 0),
      std::ldexp(static_cast<double>((uint64_t{0x6627e8d5} << 21) ^ (0xe169c58du >> 11)), -53));
}

TEST(SamplerTest, SeedChoiceAndPositionEachMakeAnotherNumber) {
  const double u = UniformNumber(1, 2, 3);
  EXPECT_EQ(UniformNumber(1, 2, 3), u);
  EXPECT_NE(UniformNumber(2, 2, 3), u);
  EXPECT_NE(UniformNumber(1, 3, 3), u);
  EXPECT_NE(UniformNumber(1, 2, 4), u);
  EXPECT_NE(UniformNumber(uint64_t{1} << 32, 2, 3), UniformNumber(0, 2, 3));
}

TEST(SamplerTest, DrawsByTheSoftmaxOfTheLogits) {
  const std::vector<float> logits = {0, std::log(3.0f), std::log(6.0f)};
  const std::vector<double> drawn = Frequencies(logits, {.seed = 5});
  EXPECT_NEAR(drawn[0], 0.1, 0.01);
  EXPECT_NEAR(drawn[1], 0.3, 0.015);
  EXPECT_NEAR(drawn[2], 0.6, 0.015);
}

TEST(SamplerTest, TemperatureSharpens) {
  const std::vector<double> drawn =
      Frequencies({0, std::log(2.0f)}, {.temperature = 0.5f, .seed = 5});
  EXPECT_NEAR(drawn[1], 0.8, 0.015);
}

TEST(SamplerTest, TopKKeepsTheLikeliestAndOfEqualOnesTheLowest) {
  const std::vector<double> drawn = Frequencies({1, 1, 1, 0}, {.top_k = 2, .seed = 9});
  EXPECT_NEAR(drawn[0], 0.5, 0.015);
  EXPECT_NEAR(drawn[1], 0.5, 0.015);
  EXPECT_EQ(drawn[2] + drawn[3], 0);
}

TEST(SamplerTest, TopPKeepsTheSmallestSetThatReachesIt) {
  const std::vector<float> logits = {std::log(0.2f), std::log(0.5f), std::log(0.3f)};
  std::vector<double> drawn = Frequencies(logits, {.top_p = 0.6f, .seed = 9});
  EXPECT_EQ(drawn[0], 0);
  EXPECT_NEAR(drawn[1], 0.625, 0.015);
  drawn = Frequencies(logits, {.top_p = 0.45f, .seed = 9});
  EXPECT_NEAR(drawn[1], 1, 1e-9);
}

TEST(SamplerTest, MinPLeavesOutWhatIsFarBelowTheLikeliest) {
  const std::vector<double> drawn =
      Frequencies({0, std::log(2.0f), std::log(10.0f)}, {.min_p = 0.15f, .seed = 9});
  EXPECT_EQ(drawn[0], 0);
  EXPECT_GT(drawn[1], 0.1);
}

TEST(SamplerTest, MaskedAndPaddedIdsAreNeverDrawn) {
  const std::vector<float> logits = {-kInfinity, 1, 1, 30};
  const std::vector<double> drawn = Frequencies(logits, {.seed = 1, .token_limit = 3});
  EXPECT_EQ(drawn[0] + drawn[3], 0);
  EXPECT_EQ(Draw({1, 2, 30}, {.temperature = 0, .token_limit = 2}), 1);
}

TEST(SamplerTest, PenaltiesCountWhatWasSeen) {
  std::vector<float> logits = {3, 2.5f, -1};
  const std::vector<int32_t> prompt = {2};
  const std::vector<int32_t> generated = {0, 0};
  SamplingParams params = {.temperature = 0, .presence_penalty = 0.3f, .frequency_penalty = 0.2f};
  EXPECT_EQ(SampleToken(logits, params, prompt, generated), 1);
  EXPECT_FLOAT_EQ(logits[0], 2.3f);
  EXPECT_FLOAT_EQ(logits[2], -1);
  logits = {3, 2.5f, -1};
  params = {.temperature = 0, .repetition_penalty = 2};
  EXPECT_EQ(SampleToken(logits, params, prompt, generated), 1);
  EXPECT_FLOAT_EQ(logits[0], 1.5f);
  EXPECT_FLOAT_EQ(logits[2], -2);
}

TEST(SamplerTest, LargeVocabulariesReachTheirLastBlock) {
  std::vector<float> logits(1000, -kInfinity);
  logits[3] = logits[999] = 1;
  const std::vector<double> drawn = Frequencies(logits, {.seed = 2});
  EXPECT_NEAR(drawn[999], 0.5, 0.02);
}

TEST(SamplerTest, LogSumExpNormalises) {
  const std::vector<float> logits = {100, 101, -kInfinity, 99};
  const double exact = 101 + std::log(1 + std::exp(-1.0) + std::exp(-2.0));
  EXPECT_NEAR(LogSumExp(logits), exact, 1e-5);
}

TEST(SamplerTest, NamesParameterValueAndLimit) {
  const auto error = [](const SamplingParams& params) {
    return std::string(CheckSampling(params).message());
  };
  EXPECT_EQ(error({}), "");
  EXPECT_THAT(error({.temperature = -1}), HasSubstr("temperature is -1; it must be in 0 .. 100"));
  EXPECT_THAT(error({.temperature = NAN}), HasSubstr("temperature"));
  EXPECT_THAT(error({.top_p = 0}), HasSubstr("top_p is 0"));
  EXPECT_THAT(error({.top_k = -2}), HasSubstr("top_k is -2"));
  EXPECT_THAT(error({.min_p = 2}), HasSubstr("min_p is 2"));
  EXPECT_THAT(error({.repetition_penalty = 0}), HasSubstr("repetition_penalty is 0"));
}

}  // namespace
}  // namespace epic::model
