// Families `amx-bf16` and `avx512-bf16`: products of BF16, whose weights and rows are laid out in
// tiles (tile_layout.h). In both FP8 gives C = Σ_b fma(partial_b, scale_b, C), each partial sum
// over 128 inputs, and denormals count as zero. What differs is how products of BF16 are summed:
//
// amx-bf16 (TDPBF16PS): C goes through tiles of 32 inputs in order; in each, the products of even
// inputs and those of odd inputs are summed by fused multiply-add in FP32, ascending, from 0; the
// two sums are added, and their sum is added to C. INT4 weights are those that Int4Weight
// (quantize.h) says: to scale each tile's sum would take longer than its product.
//
// avx512-bf16 (VDPBF16PS): one accumulator per output and fused multiply-add; pairs of inputs in
// order, in each pair the odd input first. INT4 gives C = Σ_g fma(partial_g, scale_g, C), each
// partial sum over the 32 inputs of a group and its weights without scale.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/amx_kernels.h"
#include "kernels/cpu/avx512_bf16_kernels.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/tile_layout.h"

namespace epic::kernels {

class TileGemmFamily : public GemmFamily {
 public:
  // amx-bf16, on real or emulated tiles.
  explicit TileGemmFamily(const AmxKernels& kernels) : name_("amx-bf16"), gemm_(kernels.gemm) {}
  // avx512-bf16.
  explicit TileGemmFamily(const Avx512Bf16Kernels& kernels)
      : name_("avx512-bf16"), gemm_(kernels.gemm) {}

  const char* name() const override { return name_; }
  int64_t panel_columns() const override { return kTilePanel; }
  int64_t panel_bytes(int64_t k, DType dtype) const override { return TilePanelBytes(k, dtype); }
  void Pack(const SourceMatrix& source, DType dtype, int64_t panel_begin, int64_t panel_end,
            std::byte* packed) const override;
  int64_t row_bytes(int64_t k, DType /*dtype*/) const override { return TileRowBytes(k); }
  void PrepareRow(const BF16* row, int64_t k, DType dtype, std::byte* to) const override;
  int64_t scratch_bytes(int64_t /*k*/) const override {
    return std::max(kAmxScratchBytes, kAvx512Bf16ScratchBytes);
  }
  void Gemm(const GemmArguments& arguments) const override { gemm_(arguments); }

 private:
  const char* name_;
  void (*gemm_)(const GemmArguments& arguments);
};

}  // namespace epic::kernels
