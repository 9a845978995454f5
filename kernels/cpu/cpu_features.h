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
  bool avx512_bf16 = false;  // with VBMI
  bool fast_bf16 = false;    // … and a vector product of BF16 that does more than FP32's (AMD's)
  // AMX tiles, BF16 and INT8, and the AVX-512 beside them, by CPUID; the rest is AmxFailure's
  // affair (amx_probe.h).
  bool amx = false;
};

// Reads CPUID and XGETBV alone, so it runs on any x86-64. Thread-safe.
CpuFeatures DetectCpuFeatures();

}  // namespace epic::kernels
