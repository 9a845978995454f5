#include "kernels/cpu/cpu_backend.h"

#include <memory>
#include <optional>
#include <string>

#include "kernels/check.h"
#include "kernels/cpu/amx_probe.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/cpu_operations.h"
#include "kernels/cpu/int8_gemm.h"
#include "kernels/cpu/tile_gemm.h"
#include "kernels/cpu/vector_ops.h"

namespace epic::kernels {
namespace {

// The family of options.family; none: fma. An error or a note goes to `result`.
std::optional<TileGemmFamily> ChooseTiled(const CpuFeatures& features, const CpuOptions& options,
                                          CpuBackendResult& result) {
  const bool automatic = options.family == CpuFamily::kAuto;
  if (options.family == CpuFamily::kAmxBf16 || automatic) {
    // The emulated tile unit is for tests: `auto` never takes it, however slow the CPU.
    if (options.emulate_amx && !automatic) return TileGemmFamily(EmulatedAmxKernels());
    if (AmxFailure().empty()) return TileGemmFamily(RealAmxKernels());
    if (!automatic) result.error = "family amx-bf16 cannot run: " + AmxFailure();
  }
  if (options.family == CpuFamily::kAvx512Bf16 && !features.avx512_bf16) {
    result.error = "family avx512-bf16 cannot run: this CPU (" + features.name +
                   ") lacks AVX-512 BF16 or VBMI";
    return std::nullopt;
  }
  // Where BF16 does no more than FP32 (Intel's CPUs without AMX), `auto` stays with family fma.
  const bool fast = automatic && features.fast_bf16 && options.vectors != CpuVectors::kAvx2;
  if (automatic) {
    result.note = std::string("family ") + (fast ? "avx512-bf16: " : "fma: ") + AmxFailure();
  }
  if (fast || options.family == CpuFamily::kAvx512Bf16) {
    return TileGemmFamily(RealAvx512Bf16Kernels());
  }
  return std::nullopt;
}

// The fastest; all have the same bits.
Int8GemmFamily ChooseInt8(const CpuFeatures& features, const CpuOptions& options) {
  if (options.emulate_amx && options.family == CpuFamily::kAmxBf16) {
    return Int8GemmFamily(EmulatedAmxKernels());
  }
  // The choice of narrower vectors holds for INT8 too.
  if (options.vectors == CpuVectors::kAuto && AmxFailure().empty()) {
    return Int8GemmFamily(RealAmxKernels());
  }
  const bool vnni = features.avx512_vnni && options.vectors != CpuVectors::kAvx2;
  return Int8GemmFamily(vnni ? VnniInt8Kernels() : Avx2Int8Kernels());
}

}  // namespace

CpuBackendResult MakeCpuBackend(const CpuOptions& options) {
  CpuBackendResult result;
  const CpuFeatures features = DetectCpuFeatures();
  // This check comes before any code runs that is compiled for more than x86-64: it would end in
  // SIGILL.
  if (!features.avx2) {
    result.error = "this CPU (" + features.name + ") lacks AVX2, FMA or F16C, which EPIC needs";
    return result;
  }
  if (options.vectors == CpuVectors::kAvx512 && !features.avx512) {
    result.error = "this CPU (" + features.name + ") lacks AVX-512 F, BW, DQ or VL";
    return result;
  }
  const std::optional<TileGemmFamily> tiled = ChooseTiled(features, options, result);
  if (!result.error.empty()) return result;
  const bool wide = features.avx512 && options.vectors != CpuVectors::kAvx2;
  const VectorOps& ops = wide ? Avx512VectorOps() : Avx2VectorOps();
  result.backend =
      std::make_unique<CpuBackend>(features, ops, tiled, ChooseInt8(features, options), options);
  return result;
}

CpuOptions ParseCpuFlags(const CpuFlags& flags) {
  CpuOptions options{.threads = flags.threads, .pin = flags.pin_threads == "on"};
  if (flags.numerics == "fma") options.family = CpuFamily::kFma;
  if (flags.numerics == "avx512-bf16") options.family = CpuFamily::kAvx512Bf16;
  if (flags.numerics == "amx-bf16") options.family = CpuFamily::kAmxBf16;
  if (flags.quantization == "int8") options.quantization = Quantization::kInt8;
  if (flags.quantization == "int4") options.quantization = Quantization::kInt4;
  if (flags.kv_cache_dtype == "fp8") options.kv_type = KvType::kFP8;
  if (flags.prompt_attention == "expanded") options.prompt_attention = PromptAttention::kExpanded;
  return options;
}

int64_t ParallelRegions(const Backend& cpu_backend) {
  const auto* cpu = dynamic_cast<const CpuBackend*>(&cpu_backend);
  // Tests and benchmarks call this, and know which backend they have made.
  KERNEL_CHECK(cpu != nullptr);
  return cpu->regions();
}

}  // namespace epic::kernels
