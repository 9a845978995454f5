// Family `amx-bf16`: products of BF16 tiles (TDPBF16PS). C goes through tiles of 32 inputs in
// order; in each, the products of even inputs and those of odd inputs are summed by fused
// multiply-add in FP32, ascending, from 0; the two sums are added, and their sum is added to C.
// FP8: C = Σ_b fma(partial_b, scale_b, C), each partial sum so over 128 inputs. INT4: the product
// of the weights that Int4Weight (quantize.h) says. Denormals count as zero.
//
// The kernels' one source runs over the tile unit of the CPU, or over an emulated one for tests.
#pragma once

#include <cstdint>

#include "kernels/cpu/amx_kernels.h"
#include "kernels/cpu/amx_layout.h"
#include "kernels/cpu/gemm.h"

namespace epic::kernels {

class AmxGemmFamily : public GemmFamily {
 public:
  explicit AmxGemmFamily(const AmxKernels& kernels) : kernels_(kernels) {}

  const char* name() const override { return "amx-bf16"; }
  int64_t panel_columns() const override { return kAmxPanel; }
  int64_t panel_bytes(int64_t k, DType dtype) const override { return AmxPanelBytes(k, dtype); }
  void Pack(const SourceMatrix& source, DType dtype, int64_t panel_begin, int64_t panel_end,
            std::byte* packed) const override;
  int64_t row_bytes(int64_t k, DType /*dtype*/) const override { return AmxRowBytes(k); }
  void PrepareRow(const BF16* row, int64_t k, DType dtype, std::byte* to) const override;
  int64_t scratch_bytes(int64_t /*k*/) const override { return kAmxScratchBytes; }
  void Gemm(const GemmArguments& arguments) const override { kernels_.gemm(arguments); }

 private:
  const AmxKernels& kernels_;
};

}  // namespace epic::kernels
