// Family `int8`: weights in INT8 with a scale per output, rows quantised to INT8 as they come
// (quantize.h), the sum of products exact in INT32. C = (sum · weight scale) · row scale in FP32.
// The same bits on AVX2, AVX-512 VNNI and AMX, since sums of integers have no order: so it stands
// beside any family of BF16 and is not in the profile's family. kInt8InputsMax (quantize.h) keeps
// the sums from overflowing.
#pragma once

#include "kernels/cpu/amx_kernels.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/int8_kernels.h"
#include "kernels/cpu/int8_layout.h"

namespace epic::kernels {

class Int8GemmFamily : public GemmFamily {
 public:
  explicit Int8GemmFamily(const Int8Kernels& kernels)
      : kernels_name_(kernels.name), gemm_(kernels.gemm) {}
  explicit Int8GemmFamily(const AmxKernels& kernels)
      : kernels_name_(kernels.name), gemm_(kernels.gemm_int8) {}

  const char* name() const override { return "int8"; }
  const char* kernels_name() const { return kernels_name_; }
  int64_t panel_columns() const override { return 16; }
  int64_t panel_bytes(int64_t k, DType /*dtype*/) const override { return Int8PanelBytes(k); }
  void Pack(const SourceMatrix& source, DType /*dtype*/, int64_t panel_begin, int64_t panel_end,
            std::byte* packed) const override {
    PackInt8Panels(source, panel_begin, panel_end, packed);
  }
  int64_t row_bytes(int64_t k, DType /*dtype*/) const override { return Int8RowBytes(k); }
  void PrepareRow(const BF16* row, int64_t k, DType /*dtype*/, std::byte* to) const override {
    QuantiseInt8Row(row, k, to);
  }
  int64_t scratch_bytes(int64_t /*k*/) const override { return kAmxScratchBytes; }
  void Gemm(const GemmArguments& arguments) const override { gemm_(arguments); }

 private:
  const char* kernels_name_;
  void (*gemm_)(const GemmArguments& arguments);
};

}  // namespace epic::kernels
