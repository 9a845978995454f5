// Passes over one row of logits or weights, a hundred thousand values or more: what the sampler
// does to all ids alike. Their results are those of the plain loops in the comments, bit for bit,
// on every CPU.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace epic::model {

inline constexpr size_t kSumBlock = 128;
constexpr size_t SumBlocks(size_t values) { return (values + kSumBlock - 1) / kSumBlock; }

// Neither NaN nor infinite.
bool AllFinite(std::span<const float> values);

// The first of the largest. `values` is not empty and holds no NaN.
size_t LargestIndex(std::span<const float> values);

// A value that at least `count` > 0 values reach, and few more: −∞ where no better one is found.
float ReachedByMany(std::span<const float> values, size_t count);
// The ids of the `count` largest, descending; of equal ones the lower id comes first.
std::vector<int32_t> LargestIds(std::span<const float> values, size_t count);

// out[i] ← Exp((logits[i] − highest) / temperature). `out` may be `logits`.
void Weigh(std::span<const float> logits, float highest, float temperature, float* out);

// Weights below `floor` become 0. Returns how many others than 0 there are then.
size_t DropBelow(std::span<float> weights, float floor);

// sums[b] ← the values of block b added one after another. [SumBlocks]
void SumOfBlocks(std::span<const float> values, float* sums);

// An id with its weight, ordered by likelihood: of equal weights the lower id is the likelier.
class Candidate {
 public:
  Candidate() = default;
  Candidate(float weight, uint32_t id);

  float weight() const;
  uint32_t id() const { return ~static_cast<uint32_t>(key_); }
  // The larger, the likelier: the weight's bits above the inverted id.
  uint64_t key() const { return key_; }
  auto operator<=>(const Candidate&) const = default;

 private:
  uint64_t key_ = 0;
};

// The ids whose weight is at least `floor` and not 0, ascending.
std::vector<Candidate> AtLeast(std::span<const float> weights, float floor);

}  // namespace epic::model
