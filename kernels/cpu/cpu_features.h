// What this CPU and its operating system offer to the kernels (CPUID and XGETBV).
#pragma once

#include <string>

namespace epic::kernels {

struct CpuFeatures {
  std::string name;     // the brand string
  bool avx2 = false;    // AVX2, FMA and F16C, registers saved by the system
  bool avx512 = false;  // F, BW, DQ and VL, registers saved by the system
  bool avx512_vnni = false;
  bool avx512_vbmi = false;
  // AMX tiles, BF16 and INT8, and the AVX-512 beside them, by CPUID; the rest is AmxFailure's
  // affair (amx_probe.h).
  bool amx = false;
};

CpuFeatures DetectCpuFeatures();

}  // namespace epic::kernels
