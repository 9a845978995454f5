// The oracle: every operation as plain loops in the order that the numeric profile fixes.
#pragma once

#include <memory>

#include "kernels/backend.h"
#include "kernels/quantize.h"

namespace epic::kernels {

struct ReferenceOptions {
  // true: the profile and the bits of the CPU backend's family `fma`.
  // false: FP32 throughout: weights dequantised to FP32, activations and KV records not rounded.
  // Tensors and pages then still hold the rounded values; their FP32 twins are kept beside, found
  // by a row's content (a step long) or a record's address.
  bool round_to_bf16 = true;
  // With round_to_bf16 only.
  Quantization quantization = Quantization::kNone;
  // With round_to_bf16 only: the arithmetic of family avx512-bf16, which takes inputs in pairs, the
  // odd one first, scales the sums of INT4's groups, and attends by products.
  bool avx512_bf16 = false;
  // With round_to_bf16 only: rows that meet FP8 weights are quantised first, as family sm90 has it:
  // to E4M3 per 128 inputs, scale = max(largest, 1e-4)/448.
  bool fp8_activations = false;
  KvType kv_type = KvType::kBF16;  // kFP8 only where round_to_bf16
  PromptAttention prompt_attention = PromptAttention::kAbsorbed;
};

// Runs on the calling thread. Needs a CPU with AVX2 and FMA.
std::unique_ptr<Backend> MakeReferenceBackend(const ReferenceOptions& options);

}  // namespace epic::kernels
