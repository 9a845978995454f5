// What this CPU and its operating system offer to the kernels (CPUID and XGETBV).
#pragma once

#include <string>

namespace epic::kernels {

struct CpuFeatures {
  std::string name;       // the brand string
  bool avx2 = false;      // AVX2, FMA and F16C, registers saved by the system
  bool avx512 = false;    // F, BW, DQ and VL, registers saved by the system
  bool amx_bf16 = false;  // AMX tiles and BF16 by CPUID; permission is the family's affair
};

CpuFeatures DetectCpuFeatures();

}  // namespace epic::kernels
