#include "model/vocabulary_passes.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

#include "base/check.h"
#include "kernels/math.h"

namespace epic::model {
namespace {

// The loops are written so that the compiler makes vectors of them (see the options of this file in
// CMakeLists.txt). Each is compiled for three instruction sets, of which Best takes what the CPU
// has. None changes a bit.

[[gnu::always_inline]] inline float LargestHere(const float* values, size_t count) {
  constexpr size_t kLanes = 64;  // running values side by side: those of one wait for each other
  float largest = values[0];
  size_t i = 0;
  if (count >= kLanes) {
    float lanes[kLanes];
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = largest;
    for (; i + kLanes <= count; i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        lanes[lane] = lanes[lane] < values[i + lane] ? values[i + lane] : lanes[lane];
      }
    }
    for (const float lane : lanes) largest = largest < lane ? lane : largest;
  }
  for (; i < count; ++i) largest = largest < values[i] ? values[i] : largest;
  return largest;
}

[[gnu::always_inline]] inline void BlockMaximaHere(const float* values, size_t blocks,
                                                   float* maxima) {
  constexpr size_t kLanes = 16;
  for (size_t b = 0; b < blocks; ++b, values += kSumBlock) {
    float lanes[kLanes];
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = values[lane];
    for (size_t i = kLanes; i < kSumBlock; i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        lanes[lane] = lanes[lane] < values[i + lane] ? values[i + lane] : lanes[lane];
      }
    }
    for (size_t half = kLanes / 2; half > 0; half /= 2) {
      for (size_t lane = 0; lane < half; ++lane) {
        lanes[lane] = lanes[lane] < lanes[lane + half] ? lanes[lane + half] : lanes[lane];
      }
    }
    maxima[b] = lanes[0];
  }
}

[[gnu::always_inline]] inline void WeighHere(const float* logits, size_t count, float highest,
                                             float temperature, float* out) {
  constexpr float kLowest = kernels::exp_constants::kLowest;
  for (size_t i = 0; i < count; ++i) {
    // A division, not a product with the inverse: the bits are those of the plain sampler.
    const float x = (logits[i] - highest) / temperature;
    // Exp's branch below kLowest, as a factor.
    out[i] = kernels::Exp(x < kLowest ? kLowest : x) * (x < kLowest ? 0.0f : 1.0f);
  }
}

[[gnu::always_inline]] inline size_t DropBelowHere(float* weights, size_t count, float floor) {
  // Counters of 32 bits fill as many lanes as the floats do; a vocabulary fits.
  uint32_t kept = 0;
  for (size_t i = 0; i < count; ++i) {
    const float weight = weights[i] < floor ? 0.0f : weights[i];
    weights[i] = weight;
    kept += weight > 0 ? 1 : 0;
  }
  return kept;
}

[[gnu::always_inline]] inline size_t CountHere(const float* weights, size_t count, float floor) {
  uint32_t found = 0;
  for (size_t i = 0; i < count; ++i) found += weights[i] >= floor ? 1 : 0;
  return found;
}

[[gnu::always_inline]] inline size_t UnboundedHere(const float* values, size_t count) {
  // Infinite and NaN have all exponent bits set. Comparing floats would let a compiler assume that
  // there is no NaN.
  constexpr uint32_t kExponent = 0x7f800000u;
  uint32_t found = 0;
  for (size_t i = 0; i < count; ++i) {
    found += (std::bit_cast<uint32_t>(values[i]) & kExponent) == kExponent ? 1 : 0;
  }
  return found;
}

// Sixteen blocks side by side, as many as there are.
[[gnu::always_inline]] inline size_t BlockSumsHere(const float* values, size_t blocks,
                                                   float* sums) {
  // Each block is summed in ascending order by one lane, so the bits are those of the scalar loop.
  constexpr size_t kSide = 16;
  size_t b = 0;
  for (; b + kSide <= blocks; b += kSide) {
    float running[kSide] = {};
    for (size_t i = 0; i < kSumBlock; ++i) {
      for (size_t side = 0; side < kSide; ++side) {
        running[side] += values[(b + side) * kSumBlock + i];
      }
    }
    for (size_t side = 0; side < kSide; ++side) sums[b + side] = running[side];
  }
  return b;
}

struct Passes {
  float (*largest)(const float*, size_t);
  void (*block_maxima)(const float*, size_t, float*);
  void (*weigh)(const float*, size_t, float, float, float*);
  size_t (*drop_below)(float*, size_t, float);
  size_t (*count)(const float*, size_t, float);
  size_t (*unbounded)(const float*, size_t);
  size_t (*block_sums)(const float*, size_t, float*);
};

#define EPIC_PASSES(Name, attributes)                                                            \
  struct Name {                                                                                  \
    attributes static float Largest(const float* v, size_t n) { return LargestHere(v, n); }      \
    attributes static void BlockMaxima(const float* v, size_t n, float* out) {                   \
      BlockMaximaHere(v, n, out);                                                                \
    }                                                                                            \
    attributes static void Weigh(const float* v, size_t n, float h, float t, float* o) {         \
      WeighHere(v, n, h, t, o);                                                                  \
    }                                                                                            \
    attributes static size_t DropBelow(float* v, size_t n, float floor) {                        \
      return DropBelowHere(v, n, floor);                                                         \
    }                                                                                            \
    attributes static size_t Count(const float* v, size_t n, float floor) {                      \
      return CountHere(v, n, floor);                                                             \
    }                                                                                            \
    attributes static size_t Unbounded(const float* v, size_t n) { return UnboundedHere(v, n); } \
    attributes static size_t BlockSums(const float* v, size_t n, float* out) {                   \
      return BlockSumsHere(v, n, out);                                                           \
    }                                                                                            \
    static constexpr Passes kAll = {Largest, BlockMaxima, Weigh,    DropBelow,                   \
                                    Count,   Unbounded,   BlockSums};                            \
  }
EPIC_PASSES(Plain, );
#ifdef __x86_64__
EPIC_PASSES(Avx2, [[gnu::target("avx2,fma")]]);
EPIC_PASSES(Avx512, [[gnu::target("avx512f,avx512dq,avx512vl,fma,prefer-vector-width=512")]]);
#endif
#undef EPIC_PASSES

const Passes& Best() {
#ifdef __x86_64__
  // Asked of the CPU once. The choice changes no bit, so it needs no flag.
  static const Passes& best = [&]() -> const Passes& {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Plain::kAll;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
    return wide ? Avx512::kAll : Avx2::kAll;
  }();
  return best;
#else
  return Plain::kAll;
#endif
}

}  // namespace

bool AllFinite(std::span<const float> values) {
  return Best().unbounded(values.data(), values.size()) == 0;
}

size_t LargestIndex(std::span<const float> values) {
  CHECK(!values.empty());
  const Passes& passes = Best();
  const float largest = passes.largest(values.data(), values.size());
  // Counting is vectorised and finding is not: the stride that holds the largest is searched alone.
  constexpr size_t kStride = 8 * kSumBlock;
  for (size_t begin = 0;; begin += kStride) {
    const size_t end = std::min(begin + kStride, values.size());
    if (passes.count(values.data() + begin, end - begin, largest) == 0) continue;
    return std::find(values.begin() + begin, values.begin() + end, largest) - values.begin();
  }
}

float ReachedByMany(std::span<const float> values, size_t count) {
  CHECK_GT(count, 0u);
  const size_t blocks = values.size() / kSumBlock;
  if (count > blocks) return -std::numeric_limits<float>::infinity();
  // Each of so many blocks has such a value.
  // The count-th largest maximum is a floor that at least `count` values reach.
  std::vector<float> maxima(blocks);
  Best().block_maxima(values.data(), blocks, maxima.data());
  const auto last = maxima.begin() + static_cast<int64_t>(count) - 1;
  std::ranges::nth_element(maxima, last, std::ranges::greater());
  return *last;
}

std::vector<int32_t> LargestIds(std::span<const float> values, size_t count) {
  const float floor = ReachedByMany(values, count);
  std::vector<int32_t> ids;
  for (size_t id = 0; id < values.size(); ++id) {
    if (values[id] >= floor) ids.push_back(static_cast<int32_t>(id));
  }
  // Ties go to the lower id, as everywhere.
  const auto larger = [&](int32_t a, int32_t b) {
    return values[a] != values[b] ? values[a] > values[b] : a < b;
  };
  count = std::min(count, ids.size());
  std::ranges::partial_sort(ids, ids.begin() + static_cast<int64_t>(count), larger);
  ids.resize(count);
  return ids;
}

void Weigh(std::span<const float> logits, float highest, float temperature, float* out) {
  Best().weigh(logits.data(), logits.size(), highest, temperature, out);
}

size_t DropBelow(std::span<float> weights, float floor) {
  return Best().drop_below(weights.data(), weights.size(), floor);
}

void SumOfBlocks(std::span<const float> values, float* sums) {
  size_t b = Best().block_sums(values.data(), values.size() / kSumBlock, sums);
  for (size_t begin = b * kSumBlock; begin < values.size(); begin += kSumBlock) {
    float sum = 0;
    for (const float value : values.subspan(begin, std::min(kSumBlock, values.size() - begin))) {
      sum += value;
    }
    sums[b++] = sum;
  }
}

Candidate::Candidate(float weight, uint32_t id)
    // Weights are not negative, so their bits order as they do. The id is inverted: of equal
    // weights the lower id is the larger key.
    : key_(uint64_t{std::bit_cast<uint32_t>(weight)} << 32 | static_cast<uint32_t>(~id)) {}

float Candidate::weight() const { return std::bit_cast<float>(static_cast<uint32_t>(key_ >> 32)); }

std::vector<Candidate> AtLeast(std::span<const float> weights, float floor) {
  const Passes& passes = Best();
  floor = std::max(floor, std::numeric_limits<float>::min());  // Exp's are 0 or larger
  std::vector<Candidate> found;
  for (size_t begin = 0; begin < weights.size(); begin += kSumBlock) {
    const size_t end = std::min(begin + kSumBlock, weights.size());
    if (passes.count(weights.data() + begin, end - begin, floor) == 0) continue;
    for (size_t id = begin; id < end; ++id) {
      if (weights[id] >= floor) found.emplace_back(weights[id], static_cast<uint32_t>(id));
    }
  }
  return found;
}

}  // namespace epic::model
