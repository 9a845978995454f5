// AVX2 instance of the vector operations. Compiled with flags for AVX2: see CMakeLists.txt.
#include "kernels/cpu/lanes_avx2.h"
// The lanes come first: the rest is written over them.
#include "kernels/cpu/product_attention_inl.h"
#include "kernels/cpu/vector_attention_inl.h"
#include "kernels/cpu/vector_gemm_inl.h"
#include "kernels/cpu/vector_ops.h"
#include "kernels/cpu/vector_rows_inl.h"

namespace epic::kernels {

const VectorOps& Avx2VectorOps() {
  static constexpr VectorOps kOps = {
      .name = "AVX2",
      .gemm = &Gemm,
      .rms_norm = &RmsNorm,
      .to_bf16 = &ToBF16Row,
      .silu_multiply = &SiluMultiply,
      .add = &Add,
      .widen = &Widen,
      .add_scaled = &AddScaled,
      .attention_load = &AttentionLoad,
      .attention_split = &AttentionSplit,
      .key_row = &KeyRow,
      .interleave = &Interleave,
      .key_weights = &KeyWeights,
      .transpose = &Transpose,
      .attention_merge = &AttentionMerge,
      .attention_finish = &AttentionFinish,
  };
  return kOps;
}

}  // namespace epic::kernels
