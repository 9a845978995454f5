// The paged, compressed KV cache as kernels see it: one slab of pages per layer.
//
// A record is what one token leaves in one layer: [latent | scales | rope key], each part padded to
// 16 bytes. The rope key is BF16. The latent is BF16 without scales, or E4M3 with an FP32 scale for
// each 128 values (kv_record.h). A page (slot) is 64 records of consecutive tokens of one sequence;
// page id p names the p-th page in every layer's slab. The bytes are the same on every device and
// wire.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace epic::kernels {

inline constexpr int kPageTokens = 64;
// Keys of which attention makes one partial result, at absolute positions (docs/numerics.md). It
// fixes bits and stands in the numeric profile. A multiple of kPageTokens.
inline constexpr int kSplitTokens = 512;
// Values of an FP8 latent that share a scale.
inline constexpr int kKvScaleBlock = 128;

enum class KvType : uint8_t { kBF16, kFP8 };
// The word for it in the numeric profile.
constexpr const char* KvTypeName(KvType type) { return type == KvType::kFP8 ? "fp8" : "bf16"; }

struct KvLayout {
  int latent_dim = 0;  // kv_lora_rank
  int rope_dim = 0;    // qk_rope_head_dim
  KvType type = KvType::kBF16;

  static constexpr int64_t Padded(int64_t bytes) { return (bytes + 15) / 16 * 16; }
  constexpr int scale_count() const {
    return type == KvType::kFP8 ? (latent_dim + kKvScaleBlock - 1) / kKvScaleBlock : 0;
  }
  constexpr int64_t scales_offset_bytes() const {
    return Padded(int64_t{latent_dim} * (type == KvType::kFP8 ? 1 : 2));
  }
  constexpr int64_t rope_offset_bytes() const {
    return scales_offset_bytes() + Padded(int64_t{4} * scale_count());
  }
  // All of them are multiples of 16.
  constexpr int64_t record_bytes() const { return rope_offset_bytes() + Padded(rope_dim * 2); }
  constexpr int64_t page_bytes() const { return kPageTokens * record_bytes(); }
};

// Owned by worker/kv (pool); valid while the pool lives. Page ids below page_count are valid.
struct KvView {
  KvLayout layout;
  std::span<std::byte* const> slabs;  // [layers], each page_count · layout.page_bytes(), 64-aligned
  int page_count = 0;
};

}  // namespace epic::kernels
