#include "kernels/gate_choice.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/math.h"

namespace epic::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The indices of the `count` largest values, ties to the lowest index, in ascending order.
void LargestIndices(const float* values, int size, int count, int32_t* out) {
  std::vector<int32_t> order(size);
  // Ties go to the lowest index, which makes the order total: every sort finds the same.
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int32_t a, int32_t b) {
    return values[a] != values[b] ? values[a] > values[b] : a < b;
  });
  std::copy_n(order.begin(), count, out);
  std::sort(out, out + count);
}

}  // namespace

GateChooser::GateChooser(const GateShape& shape, std::span<const float> correction_bias)
    : shape_(shape), bias_(correction_bias.begin(), correction_bias.end()) {}

void GateChooser::Score(const float* logits, float* scores) const {
  if (shape_.score == GateScore::kSigmoid) {
    for (int e = 0; e < shape_.experts; ++e) scores[e] = Sigmoid(logits[e]);
    return;
  }
  // A NaN may be passed over here; the sum below then shows it in every score.
  const float highest = *std::max_element(logits, logits + shape_.experts);
  float sum = 0;
  for (int e = 0; e < shape_.experts; ++e) {
    scores[e] = Exp(logits[e] - highest);
    sum += scores[e];
  }
  for (int e = 0; e < shape_.experts; ++e) scores[e] = scores[e] / sum;
}

void GateChooser::KeepBestGroups(float* choice) const {
  const int size = shape_.experts / shape_.groups;
  std::vector<float> group_scores(shape_.groups);
  for (int g = 0; g < shape_.groups; ++g) {
    float first = -kInfinity;
    float second = -kInfinity;
    for (int e = g * size; e < (g + 1) * size; ++e) {
      if (choice[e] > first) {
        second = first;
        first = choice[e];
      } else if (choice[e] > second) {
        second = choice[e];
      }
    }
    // V3 judges a group by its two best experts, V2 by its best.
    const bool pair = shape_.group_score == GroupScore::kTopTwoSum && size > 1;
    group_scores[g] = pair ? first + second : first;
  }
  std::vector<int32_t> kept(shape_.kept_groups);
  LargestIndices(group_scores.data(), shape_.groups, shape_.kept_groups, kept.data());
  // V2 sets the scores of other groups to 0 and weighs by them; V3 bars them by −∞ and weighs by
  // the scores before the mask.
  const float masked = shape_.group_score == GroupScore::kMax ? 0.0f : -kInfinity;
  for (int e = 0; e < shape_.experts; ++e) {
    const int group = std::min(e / size, shape_.groups - 1);
    if (!std::binary_search(kept.begin(), kept.end(), group)) choice[e] = masked;
  }
}

bool GateChooser::Choose(const float* logits, int32_t* ids, float* weights) const {
  std::vector<float> scores(shape_.experts);
  Score(logits, scores.data());
  // The bias decides who is chosen, not what a choice weighs.
  std::vector<float> choice = scores;
  for (size_t e = 0; e < bias_.size(); ++e) choice[e] += bias_[e];
  // A NaN would break the order of the sort. The experts that are named exist, so that whatever
  // reads them stays in range.
  if (std::any_of(choice.begin(), choice.end(), [](float c) { return std::isnan(c); })) {
    std::iota(ids, ids + shape_.top_k, 0);
    std::fill_n(weights, shape_.top_k, 0.0f);
    return false;
  }
  if (shape_.group_score != GroupScore::kNone && shape_.groups > 1) KeepBestGroups(choice.data());
  LargestIndices(choice.data(), shape_.experts, shape_.top_k, ids);

  // V2's masked probabilities weigh nothing; V3 weighs by the unbiased score.
  const std::vector<float>& source = shape_.group_score == GroupScore::kMax ? choice : scores;
  float sum = 0;
  for (int j = 0; j < shape_.top_k; ++j) sum += weights[j] = source[ids[j]];
  for (int j = 0; j < shape_.top_k; ++j) {
    // 1e-20 is DeepSeek's guard against a sum of 0.
    if (shape_.normalise) weights[j] = weights[j] / (sum + 1e-20f);
    weights[j] *= shape_.scaling;
  }
  return true;
}

}  // namespace epic::kernels
