// The families of one backend as one: weights of kI8 go to family `int8`, all others to the family
// that multiplies BF16 rows. So an operation need not know what type a layer's weights have, and a
// checkpoint may mix types. The name, which stands in the profile, is the latter's.
#pragma once

#include <algorithm>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/int8_gemm.h"

namespace epic::kernels {

class CpuGemm : public GemmFamily {
 public:
  // Both outlive this, and have panels of the same number of columns.
  CpuGemm(const GemmFamily& bf16, const Int8GemmFamily& int8) : bf16_(bf16), int8_(int8) {}

  const char* name() const override { return bf16_.name(); }
  // Shares of threads are counted in panels, so both families must have panels of one width.
  int64_t panel_columns() const override { return bf16_.panel_columns(); }
  int64_t panel_bytes(int64_t k, DType dtype) const override {
    return Of(dtype).panel_bytes(k, dtype);
  }
  void Pack(const SourceMatrix& source, DType dtype, int64_t panel_begin, int64_t panel_end,
            std::byte* packed) const override {
    Of(dtype).Pack(source, dtype, panel_begin, panel_end, packed);
  }
  int64_t row_bytes(int64_t k, DType dtype) const override { return Of(dtype).row_bytes(k, dtype); }
  void PrepareRow(const BF16* row, int64_t k, DType dtype, std::byte* to) const override {
    Of(dtype).PrepareRow(row, k, dtype, to);
  }
  // Enough for either.
  int64_t scratch_bytes(int64_t k) const override {
    return std::max(bf16_.scratch_bytes(k), int8_.scratch_bytes(k));
  }
  void Gemm(const GemmArguments& arguments) const override {
    Of(arguments.weight.dtype).Gemm(arguments);
  }

 private:
  const GemmFamily& Of(DType dtype) const {
    return dtype == DType::kI8 ? static_cast<const GemmFamily&>(int8_) : bf16_;
  }

  const GemmFamily& bf16_;
  const Int8GemmFamily& int8_;
};

}  // namespace epic::kernels
