// The inner loops of the CPU backend, compiled once per instruction set from one source
// (vector_gemm_inl.h, vector_rows_inl.h, vector_attention_inl.h and product_attention_inl.h over
// lanes_avx2.h or lanes_avx512.h), with equal bits.
//
// Pointers need no alignment unless said; lengths are any. Denormals are flushed by the caller.
#pragma once

#include <cstdint>

#include "kernels/cpu/gemm.h"
#include "kernels/kv_view.h"
#include "kernels/tensor.h"

namespace epic::kernels {

inline constexpr int kLanes = 16;

// Some (row, head) pairs of one sequence, as vector lanes, against one split of its keys.
struct AttentionTile {
  static constexpr int kLanesMax = 64;

  int lanes = 0;                        // ≤ kLanesMax
  int stride = 0;                       // lanes rounded up to a multiple of kLanes
  const BF16* queries[kLanesMax] = {};  // [latent_dim + rope_dim]
  int32_t positions[kLanesMax] = {};    // of the lanes' rows
  int latent_dim = 0;                   // expanded: of a head's keys, without rope
  int rope_dim = 0;
  int value_dim = 0;                // absorbed: latent_dim, as values are the latents
  int64_t values_offset_bytes = 0;  // of a record; 0: absorbed
  bool fp8 = false;                 // latents are E4M3 with scales
  int64_t record_bytes = 0;
  int64_t scales_offset_bytes = 0;
  int64_t rope_offset_bytes = 0;
  float scale = 1;
};

// (m, l, o) of a tile's lanes: [2 + value_dim and a surplus][stride] floats, 64-byte aligned.
constexpr int64_t AttentionPartialFloats(int value_dim, int stride) {
  return int64_t{stride} * (2 + (value_dim + 7) / 8 * 8);
}
// For tiles whose keys have `width` values, and `apart` more values that are not part of the key.
constexpr int64_t AttentionScratchBytes(int width, int apart = 0) {
  return 4 * (int64_t{AttentionTile::kLanesMax} * (width + 64) +
              int64_t{64} * (width + 16 + apart + 16));
}

struct VectorOps {
  const char* name;  // "AVX2", "AVX-512"

  // Products of family `fma`: see fma_layout.h.
  void (*gemm)(const GemmArguments& arguments);

  void (*rms_norm)(const float* x, const float* weight, int64_t count, float eps, BF16* out);
  void (*to_bf16)(const float* x, int64_t count, BF16* out);
  // out ← bf16(silu(gate)·up)
  void (*silu_multiply)(const float* gate, const float* up, int64_t count, BF16* out);
  void (*add)(const float* x, int64_t count, float* into);
  void (*widen)(const BF16* x, int64_t count, float* out);
  // into ← fma(factor, x, into)
  void (*add_scaled)(float factor, const BF16* x, int64_t count, float* into);

  // qᵀ into scratch: once per tile, before its splits.
  void (*attention_load)(const AttentionTile& tile, std::byte* scratch);
  // Keys [key_begin, key_end) (≤ 512 of them, key_begin a multiple of 512) into `partial`.
  // pages[i] holds the 64 records from key_begin + 64·i; the one after the last is brought near if
  // it is not null.
  void (*attention_split)(const AttentionTile& tile, const std::byte* const* pages, int key_begin,
                          int key_end, std::byte* scratch, float* partial);
  // Steps of a split whose products are a GEMM family's (product_attention.h).
  //
  // to ← the record's key in BF16, zero up to a multiple of 32 values.
  void (*key_row)(const AttentionTile& tile, const std::byte* record, BF16* to);
  // Panel i of `to`, at to + i·panel_bytes: 16 pairs (even, odd) of values from 16·i on, zero past
  // `count`. Null: zeros.
  void (*interleave)(const BF16* even, const BF16* odd, int64_t count, std::byte* to,
                     int64_t panel_bytes);
  // Softmax of `keys` keys: (m, l) of `partial` and row i of `rows`, lane i's weights in BF16, zero
  // up to a multiple of 32 keys, from scores [keys][stride]. l is the sum of the rounded weights.
  void (*key_weights)(const AttentionTile& tile, int key_begin, int keys, const float* scores,
                      std::byte* rows, int64_t row_bytes, float* partial);
  // to[column][row] ← from[row][column]; to's rows are `rows` long, a multiple of 16, and those up
  // to a multiple of 8 columns are written.
  void (*transpose)(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
                    float* to);
  // total ← merge(total, partial of the split from key_begin); lanes before it stay as they are.
  void (*attention_merge)(const AttentionTile& tile, int key_begin, const float* partial,
                          float* total);
  // out[lane] [value_dim] ← o / l
  void (*attention_finish)(const AttentionTile& tile, const float* total, BF16* const* out);
};

// May be used only where DetectCpuFeatures() allows it.
const VectorOps& Avx2VectorOps();
const VectorOps& Avx512VectorOps();

}  // namespace epic::kernels
