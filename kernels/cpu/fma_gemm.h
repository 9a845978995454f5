// Family `fma`: one FP32 accumulator per output, K ascending, fused multiply-add; the same bits
// with AVX2, AVX-512 and in reference/. Also multiplies by FP32 weights (the router). It needs no
// instruction beyond AVX2, FMA and F16C, so it is the family that every supported CPU has.
#pragma once

#include "kernels/cpu/fma_layout.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/vector_ops.h"

namespace epic::kernels {

class FmaGemmFamily : public GemmFamily {
 public:
  explicit FmaGemmFamily(const VectorOps& ops) : ops_(ops) {}

  const char* name() const override { return "fma"; }
  int64_t panel_columns() const override { return kFmaPanel; }
  int64_t panel_bytes(int64_t k, DType dtype) const override { return FmaPanelBytes(k, dtype); }
  // This family also packs as kF32, beside the types that GemmFamily names.
  void Pack(const SourceMatrix& source, DType dtype, int64_t panel_begin, int64_t panel_end,
            std::byte* packed) const override;
  int64_t scratch_bytes(int64_t k) const override;
  void Gemm(const GemmArguments& arguments) const override { ops_.gemm(arguments); }

 private:
  const VectorOps& ops_;
};

}  // namespace epic::kernels
