// The products of family `avx512-bf16` (tile_gemm.h).
#pragma once

#include <cstdint>

#include "kernels/cpu/gemm.h"

namespace epic::kernels {

struct Avx512Bf16Kernels {
  void (*gemm)(const GemmArguments& arguments);  // weights of kBF16, kF8E4M3, kI4; rows prepared
};

// Needs CpuFeatures::avx512_bf16.
const Avx512Bf16Kernels& RealAvx512Bf16Kernels();

// A group of panels by a stretch of K, decoded (avx512_bf16_gemm.cc).
inline constexpr int64_t kAvx512Bf16ScratchBytes = int64_t{64} << 10;

}  // namespace epic::kernels
