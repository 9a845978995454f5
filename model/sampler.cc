#include "model/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "kernels/math.h"

namespace epic::model {
namespace {

constexpr size_t kSumBlock = 128;
constexpr float kGreedyBelow = 1e-5f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Philox4x32 with 10 rounds (Salmon and others, SC 2011).
std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {
        static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(product1),
        static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(product0)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

void ApplyPenalties(std::span<float> logits, const SamplingParams& params,
                    std::span<const int32_t> prompt, std::span<const int32_t> generated) {
  if (params.repetition_penalty != 1) {
    std::vector<bool> seen(logits.size());
    for (int32_t id : prompt) seen[id] = true;
    for (int32_t id : generated) seen[id] = true;
    for (size_t id = 0; id < logits.size(); ++id) {
      if (!seen[id]) continue;
      float& logit = logits[id];
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
  }
  if (params.presence_penalty == 0 && params.frequency_penalty == 0) return;
  std::vector<int32_t> count(logits.size());
  for (int32_t id : generated) ++count[id];
  for (size_t id = 0; id < logits.size(); ++id) {
    if (count[id] == 0) continue;
    logits[id] -= params.presence_penalty;
    logits[id] -= params.frequency_penalty * static_cast<float>(count[id]);
  }
}

int32_t LargestId(std::span<const float> logits) {
  return static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
}

// out[i] ← exp((logits[i] − highest) / temperature). Where the CPU has FMA, without a call of libm
// for each of the eight in an exponential: a fifth of the time, with the same bits.
[[gnu::always_inline]] inline void WeighHere(const float* logits, size_t count, float highest,
                                             float temperature, float* out) {
  for (size_t i = 0; i < count; ++i) {
    out[i] = kernels::Exp((logits[i] - highest) / temperature);
  }
}
[[gnu::target("avx2,fma")]] void WeighAvx2(const float* logits, size_t count, float highest,
                                           float temperature, float* out) {
  WeighHere(logits, count, highest, temperature, out);
}
void Weigh(const float* logits, size_t count, float highest, float temperature, float* out) {
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  (avx2 ? WeighAvx2 : WeighHere)(logits, count, highest, temperature, out);
}

// Four blocks side by side: a sum's order is fixed, so that one alone waits for each addition.
float BlockedSum(std::span<const float> values) {
  constexpr size_t kSide = 4;
  float total = 0;
  size_t begin = 0;
  for (; begin + kSide * kSumBlock <= values.size(); begin += kSide * kSumBlock) {
    float blocks[kSide] = {};
    for (size_t i = 0; i < kSumBlock; ++i) {
      for (size_t b = 0; b < kSide; ++b) blocks[b] += values[begin + b * kSumBlock + i];
    }
    for (const float block : blocks) total += block;
  }
  for (; begin < values.size(); begin += kSumBlock) {
    float block = 0;
    for (float value : values.subspan(begin, std::min(kSumBlock, values.size() - begin))) {
      block += value;
    }
    total += block;
  }
  return total;
}

// Those of `ids` that the likeliest consist of which together reach `wanted`, as far as there are.
std::vector<int32_t> Likeliest(std::span<const float> weights, std::vector<int32_t> ids,
                               float wanted) {
  const auto less_likely = [&](int32_t a, int32_t b) {
    return weights[a] != weights[b] ? weights[a] < weights[b] : a > b;
  };
  std::ranges::make_heap(ids, less_likely);
  std::vector<int32_t> kept;
  float reached = 0;
  while (!ids.empty() && reached < wanted) {
    std::ranges::pop_heap(ids, less_likely);
    reached += weights[ids.back()];
    kept.push_back(ids.back());
    ids.pop_back();
  }
  return reached < wanted ? std::vector<int32_t>() : kept;
}

void KeepTopP(std::span<float> weights, const std::vector<int32_t>& ids, float top_p) {
  const float sum = BlockedSum(weights);
  const float wanted = top_p * sum;
  // All below it together are less than what may be left out: few are above it.
  const float floor = (1 - top_p) * sum / (2 * static_cast<float>(ids.size()));
  std::vector<int32_t> likely;
  std::ranges::copy_if(ids, std::back_inserter(likely),
                       [&](int32_t id) { return weights[id] >= floor; });
  std::vector<int32_t> kept = Likeliest(weights, std::move(likely), wanted);
  if (kept.empty()) kept = Likeliest(weights, ids, wanted);  // rounding
  if (kept.empty()) return;                                  // all
  std::vector<float> values;
  for (const int32_t id : kept) values.push_back(weights[id]);
  std::ranges::fill(weights, 0);
  for (size_t i = 0; i < kept.size(); ++i) weights[kept[i]] = values[i];
}

// Zeroes the weights that min_p, top_k and top_p leave out. The largest weight is 1.
void KeepLikely(std::span<float> weights, const SamplingParams& params) {
  for (float& weight : weights) {
    if (weight < params.min_p) weight = 0;
  }
  const bool limits_count = params.top_k > 0 && params.top_k < static_cast<int>(weights.size());
  if (!limits_count && params.top_p >= 1) return;
  std::vector<int32_t> ids;
  for (size_t id = 0; id < weights.size(); ++id) {
    if (weights[id] > 0) ids.push_back(static_cast<int32_t>(id));
  }
  const auto likelier = [&](int32_t a, int32_t b) {
    return weights[a] != weights[b] ? weights[a] > weights[b] : a < b;
  };
  if (limits_count && params.top_k < static_cast<int>(ids.size())) {
    std::nth_element(ids.begin(), ids.begin() + params.top_k, ids.end(), likelier);
    for (size_t i = params.top_k; i < ids.size(); ++i) weights[ids[i]] = 0;
    ids.resize(params.top_k);
  }
  if (params.top_p < 1) KeepTopP(weights, ids, params.top_p);
}

// The first id at which the running sum of weights exceeds `target`.
int32_t Invert(std::span<const float> weights, double target) {
  int32_t last_kept = 0;
  float before = 0;
  for (size_t begin = 0; begin < weights.size(); begin += kSumBlock) {
    const size_t end = std::min(begin + kSumBlock, weights.size());
    float block = 0;
    for (size_t id = begin; id < end; ++id) {
      if (weights[id] == 0) continue;
      block += weights[id];
      last_kept = static_cast<int32_t>(id);
      if (double{before + block} > target) return last_kept;
    }
    before += block;
  }
  return last_kept;
}

absl::Status CheckRange(const char* field, float value, float low, float high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, "; it must be in ", low, " .. ", high));
}

}  // namespace

absl::Status CheckSampling(const SamplingParams& params) {
  for (const absl::Status& status :
       {CheckRange("temperature", params.temperature, 0, 100),
        CheckRange("top_p", params.top_p, 1e-6f, 1), CheckRange("min_p", params.min_p, 0, 1),
        CheckRange("repetition_penalty", params.repetition_penalty, 1e-3f, 1e3f),
        CheckRange("presence_penalty", params.presence_penalty, -100, 100),
        CheckRange("frequency_penalty", params.frequency_penalty, -100, 100)}) {
    if (!status.ok()) return status;
  }
  if (params.top_k < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_k is ", params.top_k, "; it must be 0 (off) or more"));
  }
  return absl::OkStatus();
}

int32_t SampleToken(std::span<float> logits, const SamplingParams& params,
                    std::span<const int32_t> prompt, std::span<const int32_t> generated) {
  CHECK(!logits.empty());
  ApplyPenalties(logits, params, prompt, generated);
  if (params.token_limit > 0 && params.token_limit < static_cast<int>(logits.size())) {
    std::ranges::fill(logits.subspan(params.token_limit), -kInfinity);
  }
  const int32_t likeliest = LargestId(logits);
  if (params.temperature < kGreedyBelow || logits[likeliest] == -kInfinity) return likeliest;
  const float highest = logits[likeliest];
  Weigh(logits.data(), logits.size(), highest, params.temperature, logits.data());
  KeepLikely(logits, params);
  const double u = UniformNumber(params.seed, params.choice, generated.size());
  return Invert(logits, u * double{BlockedSum(logits)});
}

float LogSumExp(std::span<const float> logits) {
  const float highest = *std::ranges::max_element(logits);
  if (highest == -kInfinity) return highest;
  float total = 0;
  for (size_t begin = 0; begin < logits.size(); begin += kSumBlock) {
    const size_t count = std::min(kSumBlock, logits.size() - begin);
    float weights[kSumBlock];
    Weigh(logits.data() + begin, count, highest, /*temperature=*/1, weights);
    float block = 0;
    for (size_t i = 0; i < count; ++i) block += weights[i];
    total += block;
  }
  return highest + kernels::Log(total);
}

double UniformNumber(uint64_t seed, uint32_t choice, uint64_t position) {
  const std::array<uint32_t, 4> bits =
      Philox({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), choice, 0},
             static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const uint64_t mantissa = (uint64_t{bits[0]} << 21) ^ (bits[1] >> 11);
  return static_cast<double>(mantissa) * 0x1p-53;
}

}  // namespace epic::model
