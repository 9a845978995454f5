// The products of families `amx-bf16` and `int8` over a tile unit.
#pragma once

#include <cstdint>

#include "kernels/cpu/gemm.h"

namespace epic::kernels {

// Kernels over one kind of tile unit. Their rows are prepared.
struct AmxKernels {
  const char* name;
  // Weights of kBF16, kF8E4M3 and kI4 (tile_layout.h), as tile_gemm.h says.
  void (*gemm)(const GemmArguments& arguments);
  // Weights of kI8 (int8_layout.h).
  void (*gemm_int8)(const GemmArguments& arguments);
};

// Plain C++; needs AVX2 and FMA.
const AmxKernels& EmulatedAmxKernels();
// Emulated tiles between the AVX-512 code of the real ones; needs what the CPUs with AMX have of
// AVX-512 (CpuFeatures::avx512_vbmi).
const AmxKernels& EmulatedTileAmxKernels();
// May be used only where AmxFailure() is empty.
const AmxKernels& RealAmxKernels();

inline constexpr int64_t kAmxScratchBytes = 40960;

}  // namespace epic::kernels
