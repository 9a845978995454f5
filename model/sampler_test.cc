#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/math.h"
#include "model/vocabulary_passes.h"

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

// The definition in sampler.h, id by id.
int32_t PlainSample(std::vector<float> logits, const SamplingParams& params,
                    const std::vector<int32_t>& prompt, const std::vector<int32_t>& generated) {
  const auto vocab = static_cast<int32_t>(logits.size());
  for (int32_t id = 0; id < vocab; ++id) {
    const auto count = std::ranges::count(generated, id);
    if (count > 0 || std::ranges::count(prompt, id) > 0) {
      if (params.repetition_penalty != 1) {
        logits[id] = logits[id] > 0 ? logits[id] / params.repetition_penalty
                                    : logits[id] * params.repetition_penalty;
      }
    }
    if (count > 0) {
      logits[id] -= params.presence_penalty;
      logits[id] -= params.frequency_penalty * static_cast<float>(count);
    }
    if (params.token_limit > 0 && id >= params.token_limit) logits[id] = -kInfinity;
  }
  const auto likeliest = std::ranges::max_element(logits);
  const float highest = *likeliest;
  if (params.temperature < 1e-5f || highest == -kInfinity) return likeliest - logits.begin();
  std::vector<float> weights;
  for (const float logit : logits) {
    const float weight = kernels::Exp((logit - highest) / params.temperature);
    weights.push_back(weight < params.min_p ? 0 : weight);
  }
  const auto sum = [&] {
    float total = 0;
    for (int32_t begin = 0; begin < vocab; begin += 128) {
      float block = 0;
      for (int32_t id = begin; id < std::min(begin + 128, vocab); ++id) block += weights[id];
      total += block;
    }
    return total;
  };
  std::vector<int32_t> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return weights[a] > weights[b]; });
  for (int32_t i = params.top_k; params.top_k > 0 && i < vocab; ++i) weights[order[i]] = 0;
  if (params.top_p < 1) {
    const float wanted = params.top_p * sum();
    float reached = 0;
    int32_t i = 0;
    for (; i < vocab && reached < wanted; ++i) reached += weights[order[i]];
    for (; i < vocab; ++i) weights[order[i]] = 0;
  }
  const double target = UniformNumber(params.seed, params.choice, generated.size()) * double{sum()};
  int32_t last = 0;
  float before = 0, block = 0;
  for (int32_t id = 0; id < vocab; ++id) {
    if (id % 128 == 0) {
      before += block;
      block = 0;
    }
    if (weights[id] == 0) continue;
    block += weights[id];
    last = id;
    if (double{before + block} > target) break;
  }
  return last;
}

TEST(SamplerTest, AnySettingsAndVocabularyDrawWhatTheDefinitionDraws) {
  std::mt19937_64 random(3);
  const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
  const auto real = [&] { return static_cast<float>(random() >> 40) * 0x1p-24f; };
  for (int i = 0; i < 3000; ++i) {
    const int vocab = 1 + below(i % 4 == 0 ? 5 : i % 50 == 1 ? 40000 : 3000);
    std::normal_distribution<float> normal(0, std::pow(10.0f, 2.5f * real() - 1));
    std::vector<float> logits(vocab);
    const int kind = below(3);
    for (float& logit : logits) {
      logit = normal(random);
      if (kind == 0) logit = std::round(logit);  // many are equal
      if (kind == 1 && below(50) == 0) logit = -kInfinity;
    }
    SamplingParams params = {.temperature = below(8) > 0 ? 3 * real() + 0.01f : 0,
                             .seed = random(),
                             .choice = static_cast<uint32_t>(below(4))};
    if (below(2) > 0) params.top_p = 0.999f * real() + 5e-4f;
    if (below(2) > 0) params.top_k = 1 + below(below(2) > 0 ? 50 : vocab + 3);
    if (below(2) > 0) params.min_p = real() * real();
    if (below(4) == 0) params.repetition_penalty = 0.5f + real();
    if (below(4) == 0) params.presence_penalty = 2 * real() - 1;
    if (below(4) == 0) params.frequency_penalty = 2 * real() - 1;
    if (below(5) == 0) params.token_limit = 1 + below(vocab);
    std::vector<int32_t> prompt(below(30)), generated(below(30));
    for (auto* ids : {&prompt, &generated}) {
      for (int32_t& id : *ids) id = below(vocab);
    }
    const int32_t expected = PlainSample(logits, params, prompt, generated);
    ASSERT_EQ(SampleToken(logits, params, prompt, generated), expected)
        << i << ": vocabulary " << vocab << ", temperature " << params.temperature << ", top_p "
        << params.top_p << ", top_k " << params.top_k << ", min_p " << params.min_p;
  }
}

TEST(VocabularyPasses, FindTheLargestIds) {
  std::mt19937_64 random(4);
  for (int i = 0; i < 300; ++i) {
    std::vector<float> values(1 + random() % 5000);
    for (float& value : values)
      value = static_cast<float>(static_cast<int>(random() % 2000)) - 1e3f;
    std::vector<int32_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return values[a] > values[b]; });
    EXPECT_EQ(LargestIndex(values), order[0]);
    order.resize(std::min<size_t>(order.size(), 1 + random() % 25));
    EXPECT_EQ(LargestIds(values, order.size()), order);
  }
}

TEST(VocabularyPasses, SeeOneValueThatIsNotFinite) {
  for (const size_t size : {1, 15, 16, 100, 129, 1000}) {
    std::vector<float> values(size, std::numeric_limits<float>::max());
    EXPECT_TRUE(AllFinite(values));
    for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
      for (const size_t at : {size_t{0}, size / 2, size - 1}) {
        std::vector<float> broken = values;
        broken[at] = bad;
        EXPECT_FALSE(AllFinite(broken)) << size << " " << at;
      }
    }
  }
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
