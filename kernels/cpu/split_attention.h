// SplitAttention: what a tile of attention computes of one split of its keys, the part that a
// family has its own arithmetic for (docs/numerics.md). Merging and finishing are VectorOps' own.
//
// Stateless: any number of threads at once, each with its own scratch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/vector_ops.h"

namespace epic::kernels {

class SplitAttention {
 public:
  virtual ~SplitAttention() = default;
  // Bytes of scratch, 64-byte aligned, for tiles whose keys have key_width values, with the rope
  // part. values_apart: the values that are summed are not the keys' latents, but value_dim other
  // values of the records.
  virtual int64_t ScratchBytes(int key_width, int value_dim, bool values_apart) const = 0;
  // The tile's queries into scratch: once per tile, before its splits.
  virtual void Load(const AttentionTile& tile, std::byte* scratch) const = 0;
  // Keys [key_begin, key_end) (≤ 512 of them, key_begin a multiple of 512) into `partial`.
  // pages[i] holds the 64 records from key_begin + 64·i; the one after the last is brought near if
  // it is not null.
  virtual void Split(const AttentionTile& tile, const std::byte* const* pages, int key_begin,
                     int key_end, std::byte* scratch, float* partial) const = 0;
};

// Family `fma`: FP32 throughout, blocks of 64 keys one after another.
class VectorAttention : public SplitAttention {
 public:
  explicit VectorAttention(const VectorOps& ops) : ops_(ops) {}

  int64_t ScratchBytes(int key_width, int value_dim, bool values_apart) const override {
    return AttentionScratchBytes(key_width, values_apart ? value_dim : 0);
  }
  void Load(const AttentionTile& tile, std::byte* scratch) const override {
    ops_.attention_load(tile, scratch);
  }
  void Split(const AttentionTile& tile, const std::byte* const* pages, int key_begin, int key_end,
             std::byte* scratch, float* partial) const override {
    ops_.attention_split(tile, pages, key_begin, key_end, scratch, partial);
  }

 private:
  const VectorOps& ops_;
};

}  // namespace epic::kernels
