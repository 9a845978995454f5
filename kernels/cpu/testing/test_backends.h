// CPU backends and the oracle for the tests of this folder.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/reference/reference_backend.h"
#include "kernels/testing/toy_model.h"

namespace epic::kernels {

inline std::unique_ptr<Backend> Make(const CpuOptions& options) {
  CpuBackendResult result = MakeCpuBackend(options);
  EXPECT_EQ(result.error, "");
  return std::move(result.backend);
}

inline std::unique_ptr<Backend> Cpu(CpuVectors vectors, int threads,
                                    Quantization quantization = Quantization::kNone,
                                    KvType kv_type = KvType::kBF16) {
  return Make({.family = CpuFamily::kFma,
               .vectors = vectors,
               .quantization = quantization,
               .kv_type = kv_type,
               .threads = threads});
}

inline std::unique_ptr<Backend> EmulatedAmx(int threads,
                                            Quantization quantization = Quantization::kNone,
                                            KvType kv_type = KvType::kBF16,
                                            CpuVectors vectors = CpuVectors::kAuto) {
  return Make({.family = CpuFamily::kAmxBf16,
               .vectors = vectors,
               .quantization = quantization,
               .emulate_amx = true,
               .kv_type = kv_type,
               .threads = threads});
}

inline std::unique_ptr<Backend> Avx512Bf16(int threads,
                                           Quantization quantization = Quantization::kNone,
                                           KvType kv_type = KvType::kBF16) {
  return Make({.family = CpuFamily::kAvx512Bf16,
               .quantization = quantization,
               .kv_type = kv_type,
               .threads = threads});
}

inline std::vector<CpuVectors> VectorsOfThisCpu() {
  if (!DetectCpuFeatures().avx512) return {CpuVectors::kAvx2};
  return {CpuVectors::kAvx2, CpuVectors::kAvx512};
}

inline Logits Reference(const ToyModel& model, const Schedule& schedule,
                        KvType kv_type = KvType::kBF16) {
  const auto backend = MakeReferenceBackend({.kv_type = kv_type});
  return RunAll(model, *backend, schedule);
}

inline constexpr uint32_t kNaN = 0x7fc00000u;  // as ToyRun reports every NaN
}  // namespace epic::kernels
