#include <algorithm>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/limits.h"

namespace epic::kernels {
namespace {

constexpr int kRowUnit = 16;  // values of a row of K, which is copied by 16 bytes

// `field` is the name in the checkpoint's config.json, where the user meets the value.
std::string Problem(const char* field, int value, const std::string& limit) {
  return std::string(field) + " is " + std::to_string(value) + "; the CUDA kernels take " + limit;
}

}  // namespace

std::string CudaShapeProblem(const CudaModelShape& shape) {
  if (std::ranges::count(cuda::kMlaLatentDims, shape.kv_rank) == 0) {
    return Problem("kv_lora_rank", shape.kv_rank, "128 or 512");
  }
  if (shape.rope_dim != cuda::kMlaRopeDim) {
    return Problem("qk_rope_head_dim", shape.rope_dim, "64");
  }
  const std::string unit = "multiples of 16";
  if (shape.hidden % kRowUnit != 0) return Problem("hidden_size", shape.hidden, unit);
  if (shape.q_rank % kRowUnit != 0) return Problem("q_lora_rank", shape.q_rank, unit);
  if (shape.nope_dim % kRowUnit != 0) return Problem("qk_nope_head_dim", shape.nope_dim, unit);
  if (shape.v_dim % kRowUnit != 0) return Problem("v_head_dim", shape.v_dim, unit);
  for (const int intermediate : shape.intermediates) {
    if (intermediate % kRowUnit != 0) return Problem("intermediate_size", intermediate, unit);
  }
  const GateShape& gate = shape.gate;
  const auto at_most = [](int limit) { return "at most " + std::to_string(limit); };
  if (gate.experts > cuda::kGateExpertsMax) {
    return Problem("n_routed_experts", gate.experts, at_most(cuda::kGateExpertsMax));
  }
  if (gate.groups > cuda::kGateGroupsMax) {
    return Problem("n_group", gate.groups, at_most(cuda::kGateGroupsMax));
  }
  if (gate.top_k > cuda::kGateTopKMax) {
    return Problem("num_experts_per_tok", gate.top_k, at_most(cuda::kGateTopKMax));
  }
  if (gate.experts % gate.groups != 0) {
    return Problem("n_group", gate.groups, "a divisor of n_routed_experts");
  }
  return "";
}

int64_t CudaScratchBytes(const CudaModelShape& shape, int rows_max, int logit_rows) {
  // A step that fills a bucket computes all rows of the bucket.
  const int64_t rows = cuda::BucketOf(rows_max);
  const auto widest = std::ranges::max_element(shape.intermediates);
  const int64_t intermediate = widest == shape.intermediates.end() ? 0 : *widest;
  // A value in both forms of a row takes two bytes of BF16, one of E4M3, and at most one for its
  // share of a scale.
  constexpr int64_t kFormBytes = 2 + 1 + 1;
  const int64_t heads = shape.heads;
  // 128 columns are to spare, here and below, as FP8 parts of a joint matrix begin at multiples of
  // 128.
  const int64_t attention_row =
      kFormBytes * shape.hidden + (4 + kFormBytes) * shape.q_rank +
      4 * heads * (shape.nope_dim + shape.rope_dim) + 4 * (shape.kv_rank + shape.rope_dim + 128) +
      2 * heads * shape.nope_dim + kFormBytes * heads * shape.v_dim + 4 * shape.gate.experts;
  // Input, gate and up in FP32, the product, the answer; rows from elsewhere and back.
  const int64_t mlp_row =
      kFormBytes * shape.hidden + 8 * (intermediate + 128) + kFormBytes * intermediate;
  const int64_t places = std::max<int64_t>(rows, cuda::kBatchPlacesMax);
  const int64_t expert_rows =
      places * (mlp_row + 2 * shape.hidden) + rows * 2 * shape.hidden * (1 + shape.gate.top_k);
  const int64_t partial = int64_t{cuda::kPartialRowsMax} * (4 * shape.kv_rank + 8);
  const int64_t head = int64_t{logit_rows} * (4 * int64_t{shape.vocab} + kFormBytes * shape.hidden);
  const int64_t total = rows * attention_row + expert_rows + partial + head;
  // A quarter is added because scratch memory grows in steps (device_memory.h).
  return total + total / 4 + cuda::kGraphBytes;
}

}  // namespace epic::kernels
