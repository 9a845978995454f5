#include "kernels/cuda/gate.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cuda/test/harness.h"
#include "kernels/gate_choice.h"

namespace epic::kernels::cuda {
namespace {

struct Replicas {
  std::vector<int32_t> begin, slots;
};

// Expert e is held by 1 + e % 3 slots.
Replicas MakeReplicas(int experts) {
  Replicas replicas;
  for (int e = 0; e < experts; ++e) {
    replicas.begin.push_back(static_cast<int32_t>(replicas.slots.size()));
    for (int i = 0; i <= e % 3; ++i) {
      replicas.slots.push_back(static_cast<int32_t>(replicas.slots.size()));
    }
  }
  replicas.begin.push_back(static_cast<int32_t>(replicas.slots.size()));
  std::reverse(replicas.slots.begin(), replicas.slots.end());
  return replicas;
}

void Check(const GateShape& shape, const std::vector<float>& logits, const std::vector<float>& bias,
           Stream stream) {
  const int rows = static_cast<int>(logits.size()) / shape.experts;
  const Replicas replicas = MakeReplicas(shape.experts);
  const GateChooser chooser(shape, bias);
  std::vector<int32_t> experts(rows * shape.top_k), slots;
  std::vector<float> weights(rows * shape.top_k);
  std::vector<uint8_t> faults;
  std::vector<int32_t> slot_rows(replicas.slots.size(), 1);
  for (int r = 0; r < rows; ++r) {
    faults.push_back(chooser.Choose(logits.data() + r * shape.experts,
                                    experts.data() + r * shape.top_k,
                                    weights.data() + r * shape.top_k)
                         ? 0
                         : 1);
    for (int k = 0; k < shape.top_k; ++k) {
      const int e = experts[r * shape.top_k + k];
      const int count = replicas.begin[e + 1] - replicas.begin[e];
      slots.push_back(replicas.slots[replicas.begin[e] + r % count]);
      ++slot_rows[slots.back()];
    }
  }
  const Buffer<float> logits_in(logits), bias_in(bias);
  const Buffer<int32_t> begin_in(replicas.begin), slots_in(replicas.slots);
  const Buffer<int32_t> experts_out(std::vector<int32_t>(experts.size(), -1));
  const Buffer<int32_t> slots_out(std::vector<int32_t>(experts.size(), -1));
  const Buffer<int32_t> slot_rows_out(std::vector<int32_t>(slot_rows.size(), 1));
  const Buffer<float> weights_out(std::vector<float>(experts.size(), -1));
  const Buffer<uint8_t> faults_out(std::vector<uint8_t>(rows, 7));
  ChooseExperts(stream, {.shape = shape,
                         .rows = rows,
                         .logits = logits_in.data(),
                         .bias = bias.empty() ? nullptr : bias_in.data(),
                         .replica_begin = begin_in.data(),
                         .replica_slots = slots_in.data(),
                         .experts = experts_out.data(),
                         .weights = weights_out.data(),
                         .faults = faults_out.data(),
                         .slots = slots_out.data(),
                         .slot_rows = slot_rows_out.data()});
  ExpectSame(experts_out.Read(), experts, "experts");
  ExpectSame(weights_out.Read(), weights, "weights");
  ExpectSame(faults_out.Read(), faults, "faults");
  ExpectSame(slots_out.Read(), slots, "slots");
  ExpectSame(slot_rows_out.Read(), slot_rows, "rows per slot");
}

EPIC_KERNEL_TEST(GateHasTheBitsOfTheChooserWithManyTies) {
  Random random(1);
  for (int trial = 0; trial < 60; ++trial) {
    GateShape shape;
    shape.groups = random.Integer(1, 9);
    shape.experts = shape.groups * random.Integer(1, 20);
    shape.kept_groups = random.Integer(1, shape.groups);
    shape.top_k = random.Integer(1, std::min(8, shape.kept_groups * shape.experts / shape.groups));
    shape.score = random.Integer(0, 1) != 0 ? GateScore::kSigmoid : GateScore::kSoftmax;
    shape.group_score = static_cast<GroupScore>(random.Integer(0, 2));
    shape.normalise = random.Integer(0, 1) != 0;
    shape.scaling = 2.5f;
    std::vector<float> logits(shape.experts * random.Integer(1, 6));
    std::vector<float> bias(random.Integer(0, 1) != 0 ? shape.experts : 0);
    const bool ties = random.Integer(0, 1) != 0;
    for (float& logit : logits) {
      logit = ties ? static_cast<float>(random.Integer(-2, 2)) : random.Real(4);
    }
    for (float& value : bias) value = 0.25f * static_cast<float>(random.Integer(-4, 4));
#ifdef __CUDACC__
    const Stream stream = nullptr;
#else
    const Stream stream{static_cast<uint64_t>(trial)};
#endif
    Check(shape, logits, bias, stream);
  }
}

EPIC_KERNEL_TEST(GateOfTheModelsShapes) {
  const GateShape v2_lite = {.experts = 64, .top_k = 6};
  const GateShape v2 = {.experts = 160,
                        .top_k = 6,
                        .group_score = GroupScore::kMax,
                        .groups = 8,
                        .kept_groups = 3,
                        .scaling = 16};
  const GateShape v3 = {.experts = 256,
                        .top_k = 8,
                        .score = GateScore::kSigmoid,
                        .group_score = GroupScore::kTopTwoSum,
                        .groups = 8,
                        .kept_groups = 4,
                        .normalise = true,
                        .scaling = 2.5f};
  const GateShape k2 = {.experts = 384,
                        .top_k = 8,
                        .score = GateScore::kSigmoid,
                        .group_score = GroupScore::kTopTwoSum,
                        .normalise = true,
                        .scaling = 2.827f};
  Random random(2);
  for (const GateShape& shape : {v2_lite, v2, v3, k2}) {
    std::vector<float> logits(shape.experts * 9), bias;
    for (float& logit : logits) logit = random.Real(5);
    if (shape.score == GateScore::kSigmoid) bias.resize(shape.experts);
    for (float& value : bias) value = random.Real(0.1f);
    Check(shape, logits, bias, {});
  }
}

EPIC_KERNEL_TEST(GateReportsNaNAndStaysInRange) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const auto score : {GateScore::kSoftmax, GateScore::kSigmoid}) {
    const GateShape shape = {.experts = 4, .top_k = 2, .score = score};
    Check(shape, {1, nan, 2, 0, 3, 2, 1, 0, 1, 2, 3, nan, 1, 0, -infinity, 1}, {}, {});
  }
  Check({.experts = 2, .top_k = 1}, {infinity, infinity, nan, 1}, {}, {});
}

}  // namespace
}  // namespace epic::kernels::cuda
