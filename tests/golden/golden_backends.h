// CPU backends and loaded models for the tests of this folder.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "kernels/cpu/amx_probe.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/golden/golden_run.h"

namespace epic::golden {

// Null if this CPU lacks what the options ask for. AMX is emulated where there is none.
inline std::unique_ptr<kernels::Backend> Cpu(kernels::CpuOptions options) {
  options.emulate_amx = !kernels::AmxFailure().empty();
  return kernels::MakeCpuBackend(options).backend;
}

inline std::unique_ptr<GoldenModel> Loaded(const std::string& folder, kernels::Backend& backend) {
  auto model = GoldenModel::Load(folder, backend);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

}  // namespace epic::golden
