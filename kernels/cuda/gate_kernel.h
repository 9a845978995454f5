// The kernel of gate.h. Lane i of a warp holds experts i, i + 32, …; sums whose order fixes bits
// are taken by one lane from shared memory.
#pragma once

#include <limits>

#include "kernels/cuda/device/device.h"
#include "kernels/cuda/gate.h"

namespace epic::kernels::cuda {

struct GateKernel {
  using Params = GateArguments;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kBlocksPerSm = 4;
  // Per warp: the scores that choose, and those that weigh.
  static constexpr int kSharedBytes = kWarps * 2 * kGateExpertsMax * 4;
  // A lane's experts are marked by the bits of one word, so they are at most 32.
  static constexpr int kPerLane = kGateExpertsMax / 32;
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

  struct Candidate {
    float value;
    int expert;
  };
  // Ties go to the lowest id, which makes the choice unique: any order of comparisons finds it.
  EPIC_DEVICE static bool Better(const Candidate& a, const Candidate& b) {
    return a.value != b.value ? a.value > b.value : a.expert < b.expert;
  }

  EPIC_DEVICE static void Run(const Params& a) {
    const int warp = WarpIndex();
    const int row = BlockIndex() * kWarps + warp;
    // Whole warps leave, and no barrier of the block follows.
    if (row >= a.rows) return;
    const int offset = warp * 2 * kGateExpertsMax * 4;
    const auto choice = SharedAt<float>(offset, kGateExpertsMax);
    const auto scores = SharedAt<float>(offset + kGateExpertsMax * 4, kGateExpertsMax);
    Score(a, row, choice, scores);
    // The bias decides who is chosen, not what a choice weighs.
    bool sound = true;
    for (int e = LaneIndex(); e < a.shape.experts; e += 32) {
      const float value = scores.Load(e) + (a.bias == nullptr ? 0.0f : a.bias[e]);
      // A NaN would order itself by chance; it ends the row's request instead (docs/numerics.md).
      sound &= value == value;
      choice.Store(e, a.bias == nullptr ? scores.Load(e) : value);
    }
    sound = Ballot(!sound) == 0;
    SyncWarp();
    if (sound && a.shape.group_score != GroupScore::kNone && a.shape.groups > 1) {
      KeepBestGroups(a.shape, choice);
    }
    // An unsound row still names experts that exist, so that all readers stay in range.
    uint32_t taken = sound ? TakeBest(a.shape, choice) : FirstExperts(a.shape.top_k);
    if (LaneIndex() == 0) a.faults[row] = sound ? 0 : 1;
    // V2's masked probabilities weigh nothing; V3 weighs by the unbiased score (gate_choice.cc).
    const bool masked_weigh = a.shape.group_score == GroupScore::kMax;
    Write(a, row, taken, sound, masked_weigh ? choice : scores);
  }

  EPIC_DEVICE static void Score(const GateArguments& a, int row, Shared<float> spare,
                                Shared<float> scores) {
    const int experts = a.shape.experts;
    const float* logits = a.logits + int64_t{row} * experts;
    if (a.shape.score == GateScore::kSigmoid) {
      for (int e = LaneIndex(); e < experts; e += 32) scores.Store(e, Sigmoid(logits[e]));
      SyncWarp();
      return;
    }
    // A NaN is passed over here and shows in the sum.
    float highest = -kInfinity;
    for (int e = LaneIndex(); e < experts; e += 32) {
      highest = logits[e] > highest ? logits[e] : highest;
    }
    for (int mask = 16; mask > 0; mask /= 2) {
      const float other = ShuffleXor(highest, mask);
      highest = other > highest ? other : highest;
    }
    for (int e = LaneIndex(); e < experts; e += 32) spare.Store(e, Exp(logits[e] - highest));
    SyncWarp();
    // One lane, ascending: the order of GateChooser. A tree over lanes would have other bits.
    float sum = 0;
    if (LaneIndex() == 0) {
      for (int e = 0; e < experts; ++e) sum += spare.Load(e);
    }
    sum = ShuffleFrom(sum, 0);
    for (int e = LaneIndex(); e < experts; e += 32) scores.Store(e, spare.Load(e) / sum);
    SyncWarp();
  }

  // Lane g judges group g, and masks its experts if the group is not kept.
  EPIC_DEVICE static void KeepBestGroups(const GateShape& shape, Shared<float> choice) {
    const int size = shape.experts / shape.groups;
    const int group = LaneIndex();
    float score = -kInfinity;
    if (group < shape.groups) {
      float first = -kInfinity;
      float second = -kInfinity;
      for (int e = group * size; e < (group + 1) * size; ++e) {
        const float value = choice.Load(e);
        if (value > first) {
          second = first;
          first = value;
        } else if (value > second) {
          second = value;
        }
      }
      const bool pair = shape.group_score == GroupScore::kTopTwoSum && size > 1;
      score = pair ? first + second : first;
    }
    int better = 0;
    // Every lane counts the groups that are better than its own: fewer than kept_groups, and it is
    // kept.
    for (int g = 0; g < shape.groups; ++g) {
      const float other = ShuffleFrom(score, g);
      if (Better({other, g}, {score, group})) ++better;
    }
    if (group < shape.groups && better >= shape.kept_groups) {
      const float masked = shape.group_score == GroupScore::kMax ? 0.0f : -kInfinity;
      for (int e = group * size; e < (group + 1) * size; ++e) choice.Store(e, masked);
    }
    SyncWarp();
  }

  // Bit j of lane i: expert i + 32·j is among the k best. k rounds, each of which takes the best
  // that is left: a lane looks through its own, then the warp compares.
  EPIC_DEVICE static uint32_t TakeBest(const GateShape& shape, Shared<float> choice) {
    float values[kPerLane];
    EPIC_UNROLL
    for (int j = 0; j < kPerLane; ++j) {
      const int e = LaneIndex() + 32 * j;
      // The values move to registers: k rounds look through them.
      values[j] = e < shape.experts ? choice.Load(e) : 0;
    }
    uint32_t taken = 0;
    for (int k = 0; k < shape.top_k; ++k) {
      Candidate best = {-kInfinity, kGateExpertsMax};
      EPIC_UNROLL
      for (int j = 0; j < kPerLane; ++j) {
        const Candidate mine = {values[j], LaneIndex() + 32 * j};
        const bool free = mine.expert < shape.experts && (taken >> j & 1) == 0;
        if (free && Better(mine, best)) best = mine;
      }
      for (int mask = 16; mask > 0; mask /= 2) {
        const Candidate other = {ShuffleXor(best.value, mask), ShuffleXor(best.expert, mask)};
        if (Better(other, best)) best = other;
      }
      // All lanes have found the same expert; the one that holds it marks it.
      if (best.expert % 32 == LaneIndex()) taken |= 1u << (best.expert / 32);
    }
    return taken;
  }

  EPIC_DEVICE static uint32_t FirstExperts(int count) { return LaneIndex() < count ? 1u : 0u; }

  // Writes in ascending order of expert: the words of all lanes from j = 0 on, and in each the
  // lanes in order.
  EPIC_DEVICE static void Write(const GateArguments& a, int row, uint32_t taken, bool sound,
                                Shared<float> source) {
    const int top_k = a.shape.top_k;
    const int64_t first = int64_t{row} * top_k;
    const int lane = LaneIndex();
    float weight = 0;  // of the lane-th expert taken
    int expert = 0;
    int count = 0;
    for (int j = 0; j * 32 < a.shape.experts; ++j) {
      uint32_t votes = Ballot((taken >> j & 1) != 0);
      for (; votes != 0; votes &= votes - 1, ++count) {
        if (count == lane) expert = j * 32 + LowestBit(votes);
      }
    }
    if (lane < top_k && sound) weight = source.Load(expert);
    // All lanes add the weights in order of expert, so all have the same sum.
    float sum = 0;
    for (int k = 0; k < top_k; ++k) sum += ShuffleFrom(weight, k);
    if (lane >= top_k) return;
    if (sound) {
      if (a.shape.normalise) weight = weight / (sum + 1e-20f);
      weight *= a.shape.scaling;
    }
    a.experts[first + lane] = expert;
    a.weights[first + lane] = weight;
    const int slot = Slot(a, row, expert);
    if (a.slots != nullptr) a.slots[first + lane] = slot;
    // Additions of integers give the same sum in any order.
    if (a.slot_rows != nullptr) AtomicAdd(a.slot_rows + slot, 1);
  }

  EPIC_DEVICE static int LowestBit(uint32_t bits) { return 31 - CountLeadingZeros(bits & -bits); }

  EPIC_DEVICE static int Slot(const GateArguments& a, int row, int expert) {
    if (a.replica_begin == nullptr) return expert;
    const int begin = a.replica_begin[expert];
    return a.replica_slots[begin + row % (a.replica_begin[expert + 1] - begin)];
  }
};

}  // namespace epic::kernels::cuda
