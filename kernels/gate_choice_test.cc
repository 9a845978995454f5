#include "kernels/gate_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/math.h"
#include "kernels/testing/random.h"

namespace epic::kernels {
namespace {

using testing::ElementsAre;
using testing::FloatEq;

struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
  bool sound;
};

Choice Choose(const GateShape& shape, const std::vector<float>& logits,
              const std::vector<float>& bias = {}) {
  Choice choice{std::vector<int32_t>(shape.top_k), std::vector<float>(shape.top_k), false};
  choice.sound =
      GateChooser(shape, bias).Choose(logits.data(), choice.ids.data(), choice.weights.data());
  return choice;
}

// As the formulas read: repeatedly take the first largest.
std::vector<int32_t> TakeLargest(std::vector<float> values, int count) {
  std::vector<int32_t> taken;
  std::vector<bool> used(values.size(), false);
  while (static_cast<int>(taken.size()) < count) {
    int best = -1;
    for (int i = 0; i < static_cast<int>(values.size()); ++i) {
      if (!used[i] && (best < 0 || values[i] > values[best])) best = i;
    }
    used[best] = true;
    taken.push_back(best);
  }
  std::sort(taken.begin(), taken.end());
  return taken;
}

Choice BruteForce(const GateShape& shape, const std::vector<float>& logits,
                  const std::vector<float>& bias) {
  std::vector<float> scores(logits.size());
  if (shape.score == GateScore::kSigmoid) {
    for (size_t i = 0; i < logits.size(); ++i) scores[i] = Sigmoid(logits[i]);
  } else {
    float sum = 0;
    const float highest = *std::max_element(logits.begin(), logits.end());
    for (size_t i = 0; i < logits.size(); ++i) sum += scores[i] = Exp(logits[i] - highest);
    for (float& score : scores) score /= sum;
  }
  std::vector<float> biased = scores;
  for (size_t i = 0; i < bias.size(); ++i) biased[i] += bias[i];
  const int size = shape.experts / shape.groups;
  if (shape.group_score != GroupScore::kNone) {
    std::vector<float> groups;
    for (int g = 0; g < shape.groups; ++g) {
      std::vector<float> members(biased.begin() + g * size, biased.begin() + (g + 1) * size);
      std::sort(members.rbegin(), members.rend());
      const bool two = shape.group_score == GroupScore::kTopTwoSum && size > 1;
      groups.push_back(two ? members[0] + members[1] : members[0]);
    }
    const auto kept = TakeLargest(groups, shape.kept_groups);
    for (int i = 0; i < shape.experts; ++i) {
      if (std::count(kept.begin(), kept.end(), i / size) > 0) continue;
      if (shape.group_score == GroupScore::kMax) {
        biased[i] = scores[i] = 0;
      } else {
        biased[i] = -std::numeric_limits<float>::infinity();
      }
    }
  }
  Choice choice{TakeLargest(biased, shape.top_k), {}, true};
  float sum = 0;
  for (const int id : choice.ids) sum += scores[id];
  for (const int id : choice.ids) {
    choice.weights.push_back((shape.normalise ? scores[id] / (sum + 1e-20f) : scores[id]) *
                             shape.scaling);
  }
  return choice;
}

TEST(Gate, AgreesWithBruteForceWithManyTies) {
  Random random(1);
  for (int trial = 0; trial < 3000; ++trial) {
    GateShape shape;
    shape.groups = random.Integer(1, 5);
    shape.experts = shape.groups * random.Integer(1, 6);
    shape.kept_groups = random.Integer(1, shape.groups);
    shape.top_k = random.Integer(1, shape.kept_groups * shape.experts / shape.groups);
    shape.score = random.Integer(0, 1) != 0 ? GateScore::kSigmoid : GateScore::kSoftmax;
    shape.group_score = static_cast<GroupScore>(random.Integer(0, 2));
    shape.normalise = random.Integer(0, 1) != 0;
    shape.scaling = 2.5f;
    const bool biased = shape.group_score == GroupScore::kTopTwoSum;
    std::vector<float> logits(shape.experts);
    std::vector<float> bias(biased ? shape.experts : 0);
    for (float& logit : logits) logit = static_cast<float>(random.Integer(-2, 2));
    for (float& value : bias) value = 0.25f * static_cast<float>(random.Integer(-4, 4));
    const Choice choice = Choose(shape, logits, bias);
    const Choice expected = BruteForce(shape, logits, bias);
    EXPECT_TRUE(choice.sound);
    EXPECT_EQ(choice.ids, expected.ids) << trial;
    EXPECT_EQ(choice.weights, expected.weights) << trial;
  }
}

TEST(Gate, TiesGoToTheLowestIdsInAscendingOrder) {
  const Choice choice = Choose({.experts = 6, .top_k = 3}, {1, 2, 2, 1, 2, 2});
  EXPECT_THAT(choice.ids, ElementsAre(1, 2, 4));
}

TEST(Gate, BiasChoosesButDoesNotWeigh) {
  const GateShape shape{.experts = 3,
                        .top_k = 1,
                        .score = GateScore::kSigmoid,
                        .group_score = GroupScore::kTopTwoSum};
  const Choice choice = Choose(shape, {0, 0, 0}, {0, 0, 5});
  EXPECT_THAT(choice.ids, ElementsAre(2));
  EXPECT_THAT(choice.weights, ElementsAre(FloatEq(0.5f)));
}

TEST(Gate, ANaNIsAFaultAndIdsStayInRange) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const auto score : {GateScore::kSoftmax, GateScore::kSigmoid}) {
    const GateShape shape{.experts = 4, .top_k = 2, .score = score};
    const Choice choice = Choose(shape, {1, nan, 2, 0});
    EXPECT_FALSE(choice.sound);
    EXPECT_THAT(choice.ids, ElementsAre(0, 1));
    EXPECT_THAT(choice.weights, ElementsAre(0, 0));
  }
  EXPECT_FALSE(Choose({.experts = 2, .top_k = 1}, {infinity, infinity}).sound);
}

}  // namespace
}  // namespace epic::kernels
