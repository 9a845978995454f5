// The CPU backend: x86-64 with AVX2 at least, AVX-512 and AMX where they are.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/quantize.h"

namespace epic::kernels {

enum class CpuFamily : uint8_t { kAuto, kFma, kAvx512Bf16, kAmxBf16 };
// The widest vectors to use. It changes no bit.
enum class CpuVectors : uint8_t { kAuto, kAvx2, kAvx512 };

struct CpuOptions {
  // kAuto: amx-bf16 where it works, else avx512-bf16 where it is known to be fast, else fma.
  // Decided by CPUID and XGETBV (and, for AMX, the system's permission and one self-tested
  // product), never by timing.
  CpuFamily family = CpuFamily::kAuto;
  CpuVectors vectors = CpuVectors::kAuto;
  Quantization quantization = Quantization::kNone;
  // For tests: kAmxBf16 runs on an emulated tile unit, with the same bits.
  bool emulate_amx = false;
  KvType kv_type = KvType::kBF16;
  PromptAttention prompt_attention = PromptAttention::kAbsorbed;
  int threads = 0;   // 0: the cores that this process may use
  bool pin = false;  // each compute thread to its core, where this is the only rank
  int ranks = 1;     // on these cores: if their threads are more than the cores, none spins
};

struct CpuBackendResult {
  std::unique_ptr<Backend> backend;  // null if `error` is set
  std::string error;                 // what this CPU lacks
  std::string note;                  // why a better family is not used; may be empty
};

// Never runs an instruction that the CPU or the system lacks.
CpuBackendResult MakeCpuBackend(const CpuOptions& options);

// The values of flags, each one of the words given.
struct CpuFlags {
  std::string numerics = "auto";              // auto, fma, avx512-bf16, amx-bf16
  std::string quantization = "none";          // none, int8, int4
  std::string kv_cache_dtype = "auto";        // auto (bf16), bf16, fp8
  std::string prompt_attention = "absorbed";  // absorbed, expanded
  std::string pin_threads = "off";            // on, off
  int threads = 0;
};
CpuOptions ParseCpuFlags(const CpuFlags& flags);

// Parallel regions that a backend made by MakeCpuBackend has begun, for tests and benchmarks.
int64_t ParallelRegions(const Backend& cpu_backend);

}  // namespace epic::kernels
