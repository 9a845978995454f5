#include "model/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "kernels/math.h"
#include "model/vocabulary_passes.h"

namespace epic::model {
namespace {

// A lower temperature means greedy, as vLLM has it.
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

// The work is that of the tokens, not of the vocabulary.
void ApplyPenalties(std::span<float> logits, const SamplingParams& params,
                    std::span<const int32_t> prompt, std::span<const int32_t> generated) {
  if (params.repetition_penalty != 1) {
    std::vector<bool> seen(logits.size());
    for (const std::span<const int32_t> ids : {prompt, generated}) {
      for (const int32_t id : ids) {
        // Once for each distinct token, however often it occurs.
        if (seen[id]) continue;
        seen[id] = true;
        float& logit = logits[id];
        logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      }
    }
  }
  if (params.presence_penalty == 0 && params.frequency_penalty == 0) return;
  // Sorted runs count occurrences without a table of the whole vocabulary. The order of the two
  // subtractions is a part of the definition, since rounding makes it visible.
  std::vector<int32_t> ids(generated.begin(), generated.end());
  std::ranges::sort(ids);
  for (auto begin = ids.begin(); begin != ids.end();) {
    const auto end = std::upper_bound(begin, ids.end(), *begin);
    logits[*begin] -= params.presence_penalty;
    logits[*begin] -= params.frequency_penalty * static_cast<float>(end - begin);
    begin = end;
  }
}

// A sum of values in blocks, and where a target falls in it.
class BlockedSum {
 public:
  explicit BlockedSum(std::span<const float> weights) : sums_(SumBlocks(weights.size())) {
    // Blocks of a fixed size, then blocks in order: the same sum on every instruction set.
    SumOfBlocks(weights, sums_.data());
    for (const float sum : sums_) total_ += sum;
  }

  float total() const { return total_; }

  // The first id at which the running sum of these weights exceeds `target`; without one, the last
  // that is not 0.
  int32_t Invert(std::span<const float> weights, double target) const {
    float before = 0;
    int64_t last = -1;
    for (size_t b = 0; b < sums_.size(); before += sums_[b++]) {
      // A block of zeros must never be chosen, also when `target` rounds to the whole sum.
      if (sums_[b] > 0) last = static_cast<int64_t>(b);
      if (double{before + sums_[b]} > target) break;
    }
    if (last < 0) return 0;
    before = 0;
    // Summed again up to the chosen block, because the loop above may have run past it.
    for (int64_t b = 0; b < last; ++b) before += sums_[b];
    const size_t begin = last * kSumBlock;
    const size_t end = std::min(begin + kSumBlock, weights.size());
    size_t last_kept = begin;
    float block = 0;
    for (size_t id = begin; id < end; ++id) {
      if (weights[id] == 0) continue;
      last_kept = id;
      block += weights[id];
      if (double{before + block} > target) break;
    }
    return static_cast<int32_t>(last_kept);
  }

 private:
  std::vector<float> sums_;
  float total_ = 0;
};

// The same of a few ids, all others being 0.
class SparseSum {
 public:
  // `kept`: one at least, ids ascending.
  explicit SparseSum(std::vector<Candidate> kept)
      : kept_(std::move(kept)), total_(Walk([](float, Candidate) { return false; })) {
    CHECK(!kept_.empty());
  }

  float total() const { return total_; }
  int32_t Invert(double target) const {
    Candidate found = kept_.back();
    Walk([&](float sum, Candidate candidate) {
      if (double{sum} <= target) return false;
      found = candidate;
      return true;
    });
    return static_cast<int32_t>(found.id());
  }

 private:
  // The sum, until visit(running sum, candidate) returns true.
  template <typename Visit>
  float Walk(const Visit& visit) const {
    float total = 0, block = 0;
    size_t of_block = 0;
    for (const Candidate candidate : kept_) {
      // The same blocks as BlockedSum's: a zero adds nothing, so both sums have the same bits.
      if (candidate.id() / kSumBlock != of_block) {
        total += block;
        block = 0;
        of_block = candidate.id() / kSumBlock;
      }
      block += candidate.weight();
      if (visit(total + block, candidate)) break;
    }
    return total + block;
  }

  const std::vector<Candidate> kept_;
  const float total_;
};

// The likeliest first. Many: by eleven bits of their keys at a time, the lowest first.
void SortByLikelihood(std::vector<Candidate>& candidates) {
  constexpr size_t kMany = 4096;
  // Six passes over 64-bit keys; a table of 2,048 counts stays in the first-level cache.
  constexpr int kDigitBits = 11;
  constexpr size_t kDigits = size_t{1} << kDigitBits;
  if (candidates.size() < kMany) {
    std::ranges::sort(candidates, std::ranges::greater());
    return;
  }
  std::vector<Candidate> sorted(candidates.size());
  for (int shift = 0; shift < 64; shift += kDigitBits) {
    // Counting sort is stable, so each pass keeps the order of the passes before.
    size_t places[kDigits + 1] = {};
    const auto digit = [&](Candidate c) { return kDigits - 1 - (c.key() >> shift) % kDigits; };
    for (const Candidate c : candidates) ++places[digit(c) + 1];
    for (size_t d = 0; d < kDigits; ++d) places[d + 1] += places[d];
    for (const Candidate c : candidates) sorted[places[digit(c)]++] = c;
    candidates.swap(sorted);
  }
}

// The last of the likeliest which together reach `wanted`; none: all together do not.
std::optional<Candidate> LastToReach(float wanted, std::vector<Candidate> candidates) {
  constexpr size_t kFew = 256;  // mostly it is among so many, and the others need no order
  float reached = 0;
  std::ranges::make_heap(candidates);
  for (size_t i = 0; i < kFew && !candidates.empty(); ++i) {
    std::ranges::pop_heap(candidates);
    const Candidate next = candidates.back();
    candidates.pop_back();
    reached += next.weight();
    if (reached >= wanted) return next;
  }
  SortByLikelihood(candidates);
  for (const Candidate next : candidates) {
    reached += next.weight();
    if (reached >= wanted) return next;
  }
  return std::nullopt;
}

// Only `last` and those that are likelier; the order stays.
void KeepFrom(Candidate last, std::vector<Candidate>& candidates) {
  std::erase_if(candidates, [&](Candidate candidate) { return candidate < last; });
}

// The likeliest `count`, ids ascending.
std::vector<Candidate> TopK(std::span<const float> weights, size_t count) {
  // At least `count` weights reach this floor, so the likeliest `count` are among the candidates.
  std::vector<Candidate> candidates = AtLeast(weights, ReachedByMany(weights, count));
  if (count >= candidates.size()) return candidates;
  std::vector<Candidate> order = candidates;
  const auto last = order.begin() + static_cast<int64_t>(count) - 1;
  std::ranges::nth_element(order, last, std::ranges::greater());
  KeepFrom(*last, candidates);
  return candidates;
}

// A draw from `kept` by `u`.
int32_t DrawFrom(std::vector<Candidate> kept, double u) {
  const SparseSum sum(std::move(kept));
  return sum.Invert(u * double{sum.total()});
}

// From all weights, of which so many are not 0, or from what top_p leaves of them.
int32_t Draw(std::span<const float> weights, size_t positive, float top_p, double u) {
  const BlockedSum sum(weights);
  if (top_p < 1) {
    const float wanted = top_p * sum.total();
    // All below it together are less than what may be left out: few are above it.
    const float few = (1 - top_p) * sum.total() / (2 * static_cast<float>(positive));
    for (const float floor : {few, 0.0f}) {  // by rounding, those may not reach it
      std::vector<Candidate> candidates = AtLeast(weights, floor);
      const std::optional<Candidate> last = LastToReach(wanted, candidates);
      if (!last) continue;
      KeepFrom(*last, candidates);
      return DrawFrom(std::move(candidates), u);
    }
  }
  return sum.Invert(weights, u * double{sum.total()});
}

int32_t Draw(std::vector<Candidate> candidates, float top_p, double u) {
  if (top_p < 1) {
    const float wanted = top_p * SparseSum(candidates).total();
    if (const auto last = LastToReach(wanted, candidates)) KeepFrom(*last, candidates);
  }
  return DrawFrom(std::move(candidates), u);
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
  CHECK_GE(params.token_limit, 0);
  CHECK_GE(params.top_k, 0);
  // The order is the definition (docs/numerics.md): penalties, limit, temperature, min_p, top_k,
  // top_p, draw. Each step works on what the step before left.
  ApplyPenalties(logits, params, prompt, generated);
  // Rows of padding behind the vocabulary, which some checkpoints have, are never drawn.
  if (params.token_limit > 0 && params.token_limit < static_cast<int>(logits.size())) {
    std::ranges::fill(logits.subspan(params.token_limit), -kInfinity);
  }
  const auto likeliest = static_cast<int32_t>(LargestIndex(logits));
  const float highest = logits[likeliest];
  // All logits may be minus infinity when a mask leaves nothing; the lowest id is then the answer.
  if (params.temperature < kGreedyBelow || highest == -kInfinity) return likeliest;
  Weigh(logits, highest, params.temperature, logits.data());
  // min_p is a share of the highest weight, which is 1.
  const size_t positive = DropBelow(logits, params.min_p);
  // The position counts generated tokens, so a resubmitted sequence draws the same numbers.
  const double u = UniformNumber(params.seed, params.choice, generated.size());
  if (params.top_k > 0 && params.top_k < static_cast<int>(logits.size())) {
    return Draw(TopK(logits, params.top_k), params.top_p, u);
  }
  return Draw(logits, positive, params.top_p, u);
}

float LogSumExp(std::span<const float> logits) {
  const float highest = logits[LargestIndex(logits)];
  // The logarithm of nothing.
  if (highest == -kInfinity) return highest;
  std::vector<float> weights(logits.size());
  Weigh(logits, highest, /*temperature=*/1, weights.data());
  return highest + kernels::Log(BlockedSum(weights).total());
}

double UniformNumber(uint64_t seed, uint32_t choice, uint64_t position) {
  const std::array<uint32_t, 4> bits =
      Philox({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), choice, 0},
             static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  // 53 bits: every double in [0, 1) that is a multiple of 2^-53, and never 1.
  const uint64_t mantissa = (uint64_t{bits[0]} << 21) ^ (bits[1] >> 11);
  return static_cast<double>(mantissa) * 0x1p-53;
}

}  // namespace epic::model
