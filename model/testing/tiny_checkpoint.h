// Small random checkpoints, and safetensors files that say whatever a test wants.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "nlohmann/json.hpp"

namespace epic::model {

struct TestTensor {
  std::string dtype = "F32";
  std::vector<int64_t> shape;
  std::string bytes;
};
using TestTensors = std::map<std::string, TestTensor>;

// A file of these tensors, one after another by name.
std::string SafetensorsFile(const TestTensors& tensors);
// A file with this header, as it is, and so many bytes of data.
std::string SafetensorsFile(std::string_view header, int64_t data_bytes);

// The published spelling of a deepseek_v3 of three layers (dense, sparse, sparse) with q_lora,
// groups, YaRN and a shared expert, whose sizes no tile divides.
nlohmann::json TinyConfig();
// The same in sizes that the CUDA kernels take, and two layers.
nlohmann::json TinyCudaConfig();
// BF16 tensors for it (router bias F32), random from `seed`.
TestTensors TinyTensors(const nlohmann::json& config, uint64_t seed);
// The same with linear weights in FP8 and block scales; `config` then needs quantization_config.
TestTensors TinyFp8Tensors(const nlohmann::json& config, uint64_t seed);
// An empty folder of this test under the system's temporary one.
std::string EmptyFolder();
void WriteFile(const std::string& path, std::string_view bytes);
// config.json and model.safetensors in a new folder.
std::string WriteCheckpoint(const nlohmann::json& config, const TestTensors& tensors);

}  // namespace epic::model
