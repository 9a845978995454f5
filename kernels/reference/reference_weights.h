// Weights of the reference backend: FP32 values, transposed so that the inner loop runs over
// outputs (each output still sums K ascending in one accumulator).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/gate_choice.h"
#include "kernels/quantize.h"

namespace epic::kernels {

struct ReferenceMatrix : Matrix {
  std::vector<float> transposed;  // [cols, rows]
  std::vector<float> scales;      // [ceil(rows/128), ceil(cols/128)]; empty: the values are final
  // [ceil(cols/32), rows], of INT4 whose values are without their scale; else empty.
  std::vector<float> group_scales;
  std::vector<int8_t> integers;   // [cols, rows]: INT8, in place of `transposed`
  std::vector<float> row_scales;  // [rows], of `integers`
  bool odd_first = false;         // K ascends in pairs, the odd one of each first
  bool quantised_rows = false;    // x meets the block scales as E4M3 with a scale per 128

  // out[rows] ← W·x. Adds scaled partial sums per 128 or 32 of K where there are scales; quantises
  // x where W is INT8.
  void Multiply(const float* x, float* out) const;

 private:
  void MultiplyScaled(const float* x, float* out) const;
};

// Values as the CPU keeps them: BF16, FP8 with its scales, INT8, or INT4: with group_scales, or as
// the BF16 values that it stands for.
ReferenceMatrix MakeReferenceMatrix(const SourceMatrix& source, Quantization quantization);
// FP32 copy of `source`, exact or dequantised: for the router, and without rounding.
ReferenceMatrix MakeReferenceF32Matrix(const SourceMatrix& source);
// Rows [row, row + count) of kv_b, dequantised and (if rounded) rounded to BF16; transposed:
// outputs are kv_b's columns.
ReferenceMatrix SliceKvB(const SourceMatrix& kv_b, int64_t row, int64_t count, bool transpose,
                         bool rounded);

// Handles of the reference backend. MakeReference… makes their matrices.
struct ReferenceMlp : Mlp {
  ReferenceMatrix gate, up, down;
};

struct ReferenceAttention : Attention {
  std::vector<float> input_norm, q_a_norm, kv_a_norm;
  ReferenceMatrix q_a, q, kv_a, o;
  std::vector<ReferenceMatrix> w_uk;  // per head: [kv_rank, nope]
  std::vector<ReferenceMatrix> w_uv;  // per head: [v, kv_rank]
  std::vector<ReferenceMatrix> w_k;   // per head: [nope, kv_rank]
};

struct ReferenceGate : Gate {
  ReferenceGate(const GateShape& gate_shape, std::span<const float> bias)
      : chooser(gate_shape, bias) {
    shape = gate_shape;
  }
  GateChooser chooser;
  ReferenceMatrix weight;
};

}  // namespace epic::kernels
