// Attention of families `amx-bf16` and `avx512-bf16`: a split's scores are the family's product of
// its records with the queries, its sums the product of the weights, rounded to BF16, with the
// values. Softmax is of the whole split at once, so nothing is rescaled within it.
//
// Queries are packed as a weight, a lane being an output; records are rows as they stand in their
// page where their widths are multiples of a tile's, else copied; values are packed as a weight
// once for all lanes of a tile.
#pragma once

#include "kernels/cpu/split_attention.h"
#include "kernels/cpu/tile_gemm.h"

namespace epic::kernels {

class ProductAttention : public SplitAttention {
 public:
  // Both outlive this.
  ProductAttention(const TileGemmFamily& family, const VectorOps& ops)
      : family_(family), ops_(ops) {}

  int64_t ScratchBytes(int key_width, int value_dim, bool values_apart) const override;
  void Load(const AttentionTile& tile, std::byte* scratch) const override;
  void Split(const AttentionTile& tile, const std::byte* const* pages, int key_begin, int key_end,
             std::byte* scratch, float* partial) const override;

 private:
  // The parts of a thread's scratch.
  struct Buffers;
  // Consecutive records as rows of BF16, and where their values stand.
  struct Rows {
    const std::byte* keys;
    int64_t key_stride;
    const std::byte* values;
    int64_t value_stride;
    int count;
  };

  Rows Records(const AttentionTile& tile, const std::byte* page, int count,
               const Buffers& buffers) const;
  void PackValues(const AttentionTile& tile, const Rows& rows, int first, int keys,
                  const std::byte* next, const Buffers& buffers) const;
  // Splits whose masked keys hold a NaN or an infinity take SplitByRow, which is slower: a product
  // cannot leave a key out.
  bool AllSeenOrFinite(const AttentionTile& tile, const std::byte* const* pages, int key_begin,
                       int key_end, const Buffers& buffers) const;
  void SplitByRow(const AttentionTile& tile, const std::byte* const* pages, int key_begin,
                  int key_end, std::byte* scratch, float* partial) const;
  void SplitWhole(const AttentionTile& tile, const std::byte* const* pages, int key_begin,
                  int key_end, const Buffers& buffers, float* partial) const;
  void Multiply(const std::byte* rows, int64_t row_stride, int64_t m, PackedWeight weight, float* c,
                int64_t c_stride, const Buffers& buffers) const;

  const TileGemmFamily& family_;
  const VectorOps& ops_;
};

}  // namespace epic::kernels
