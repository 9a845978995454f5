// The products of family `int8` (int8_gemm.h) without a tile unit, and its quantiser of rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/gemm.h"

namespace epic::kernels {

struct Int8Kernels {
  const char* name;
  void (*gemm)(const GemmArguments& arguments);  // rows prepared
};

// Exact: no pair of products saturates, whatever the values but −128 in a row (which the quantiser
// never gives).
const Int8Kernels& Avx2Int8Kernels();
// Needs CpuFeatures::avx512_vnni.
const Int8Kernels& VnniInt8Kernels();

// The row as quantize.h says, laid out by int8_layout.h. Needs AVX2; the bytes are the same
// wherever it runs.
void QuantiseInt8Row(const BF16* row, int64_t k, std::byte* to);

}  // namespace epic::kernels
