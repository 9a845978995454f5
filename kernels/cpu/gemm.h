// GemmFamily: matrix products of one instruction family, the inner seam of the CPU backend.
//
// C[m, n] = Σ_k A[m, k]·W[n, k]: A is BF16, W is packed once at loading, C is FP32. All state is in
// the arguments: every function is const, touches no other memory and may run on any number of
// threads at once. Which thread computes which columns is the caller's choice and changes no bit.
//
// The bits of C[m, n] depend on row m of A, on row n of W, on (N, K) and on the family: never on M,
// on the column range of a call, or on the other rows. The tree is fixed: either one accumulator
// per output with K ascending, or a fixed list of K segments added in order. For kF8E4M3 it is
// C = Σ_b scale[n/128, b]·(Σ_{k in block b} A·W), b ascending, each inner sum in FP32.
// N and K are any positive numbers: tails are the family's duty.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace epic::kernels {

// A packed weight [n, k]: panels of panel_columns() outputs, one after another, each
// panel_bytes(k, dtype) long. `data` is 64-byte aligned. The last panel is padded.
struct PackedWeight {
  const std::byte* data = nullptr;
  int64_t n = 0;
  int64_t k = 0;
  DType dtype = DType::kBF16;
};

struct GemmArguments {
  const BF16* a = nullptr;  // row i starts at a + i·a_stride; 2-byte aligned; k values each
  int64_t a_stride = 0;     // in elements, ≥ k
  // Instead of `a` where the family prepares rows: row i at prepared + i·prepared_stride bytes, as
  // PrepareRow writes it.
  const std::byte* prepared = nullptr;
  int64_t prepared_stride = 0;
  int64_t m = 0;  // rows, ≥ 1
  PackedWeight weight;
  int64_t n_begin = 0;  // a multiple of panel_columns()
  int64_t n_end = 0;    // a multiple of panel_columns(), or weight.n
  float* c = nullptr;   // C[i, j] goes to c[i·c_stride + j − n_begin]; nothing else is written
  int64_t c_stride = 0;
  std::byte* scratch = nullptr;  // scratch_bytes(k) bytes of this thread, 64-byte aligned
};

class GemmFamily {
 public:
  virtual ~GemmFamily() = default;

  virtual const char* name() const = 0;  // as in the numeric profile: "fma", "amx-bf16"
  virtual int64_t panel_columns() const = 0;
  // A multiple of 64, so that panels stay aligned. dtype is kBF16 or kF8E4M3 (with its scales).
  virtual int64_t panel_bytes(int64_t k, DType dtype) const = 0;

  // Packs panels [panel_begin, panel_end) of `source` (any of F32, F16, BF16, F8E4M3; unaligned
  // bytes) as `dtype` into `packed`, the start of the whole matrix; only a kF8E4M3 source gives
  // kF8E4M3. Panels of one matrix may be packed by several threads: each writes its own panels
  // wholly, so that it also touches them first.
  virtual void Pack(const SourceMatrix& source, DType dtype, int64_t panel_begin, int64_t panel_end,
                    std::byte* packed) const = 0;

  // Bytes of a row of A as Gemm wants it for a weight [·, k] of this type, a multiple of 64; 0: as
  // it is.
  virtual int64_t row_bytes(int64_t /*k*/, DType /*dtype*/) const { return 0; }
  // Writes all row_bytes(k, dtype) of `to`.
  virtual void PrepareRow(const BF16* /*row*/, int64_t /*k*/, DType /*dtype*/,
                          std::byte* /*to*/) const {}

  // Scratch that one call of Gemm needs, whatever its m and columns.
  virtual int64_t scratch_bytes(int64_t k) const = 0;
  // Denormals are flushed (FTZ and DAZ are set by the caller's thread).
  virtual void Gemm(const GemmArguments& arguments) const = 0;
};

inline int64_t PanelCount(const GemmFamily& family, int64_t n) {
  return (n + family.panel_columns() - 1) / family.panel_columns();
}

inline int64_t PackedBytes(const GemmFamily& family, int64_t n, int64_t k, DType dtype) {
  return PanelCount(family, n) * family.panel_bytes(k, dtype);
}

}  // namespace epic::kernels
