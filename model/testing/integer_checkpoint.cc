#include "model/testing/integer_checkpoint.h"

#include <algorithm>
#include <string>

#include "kernels/number.h"
#include "kernels/quantize.h"

namespace epic::model {
namespace {

using nlohmann::json;

template <typename T>
void Append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

bool IsLinear(const std::string& name, std::string_view part) {
  return name.ends_with("_proj.weight") && name.find(part) != std::string::npos;
}

std::vector<float> Row(const TestTensor& tensor, int64_t row) {
  std::vector<float> values(tensor.shape[1]);
  for (int64_t i = 0; i < tensor.shape[1]; ++i) {
    values[i] = kernels::ToFloat(
        kernels::LoadUnaligned<kernels::BF16>(tensor.bytes.data(), row * tensor.shape[1] + i));
  }
  return values;
}

json CompressedTensors(const char* format, const json& weights, const json& activations) {
  return {{"quant_method", "compressed-tensors"},
          {"format", format},
          {"quantization_status", "compressed"},
          {"kv_cache_scheme", nullptr},
          {"ignore", {"lm_head"}},
          {"config_groups",
           {{"group_0",
             {{"targets", {"Linear"}},
              {"weights", weights},
              {"input_activations", activations},
              {"output_activations", nullptr}}}}}};
}

}  // namespace

TestTensors ToInt8(json& config, const TestTensors& tensors, std::string_view part,
                   TestTensors* dequantised) {
  config["quantization_config"] = CompressedTensors("int-quantized",
                                                    {{"num_bits", 8},
                                                     {"type", "int"},
                                                     {"symmetric", true},
                                                     {"strategy", "channel"},
                                                     {"group_size", nullptr},
                                                     {"dynamic", false}},
                                                    {{"num_bits", 8},
                                                     {"type", "int"},
                                                     {"symmetric", true},
                                                     {"strategy", "token"},
                                                     {"dynamic", true}});
  TestTensors result = tensors;
  if (dequantised != nullptr) *dequantised = tensors;
  for (const auto& [name, tensor] : tensors) {
    if (!IsLinear(name, part)) continue;
    const int64_t rows = tensor.shape[0], cols = tensor.shape[1];
    TestTensor values{"I8", tensor.shape, ""}, scales{"BF16", {rows, 1}, ""};
    TestTensor wide{"F32", tensor.shape, ""};
    std::vector<int8_t> q(cols);
    for (int64_t n = 0; n < rows; ++n) {
      const kernels::BF16 scale =
          kernels::ToBF16(kernels::QuantiseInt8(Row(tensor, n).data(), cols, q.data()));
      values.bytes.append(reinterpret_cast<const char*>(q.data()), cols);
      Append(scales.bytes, scale);
      for (const int8_t value : q) {
        Append(wide.bytes, static_cast<float>(value) * kernels::ToFloat(scale));
      }
    }
    result[name] = values;
    result[name + "_scale"] = scales;
    if (dequantised != nullptr) (*dequantised)[name] = wide;
  }
  return result;
}

TestTensors ToInt4(json& config, const TestTensors& tensors, std::string_view part,
                   TestTensors* dequantised) {
  config["quantization_config"] = CompressedTensors("pack-quantized",
                                                    {{"num_bits", 4},
                                                     {"type", "int"},
                                                     {"symmetric", true},
                                                     {"strategy", "group"},
                                                     {"group_size", 32},
                                                     {"actorder", nullptr}},
                                                    nullptr);
  TestTensors result = tensors;
  if (dequantised != nullptr) *dequantised = tensors;
  for (const auto& [name, tensor] : tensors) {
    if (!IsLinear(name, part)) continue;
    const int64_t rows = tensor.shape[0], cols = tensor.shape[1];
    TestTensor packed{"I32", {rows, (cols + 7) / 8}, ""};
    TestTensor scales{"BF16", {rows, (cols + 31) / 32}, ""};
    TestTensor wide{"F32", tensor.shape, ""};
    for (int64_t n = 0; n < rows; ++n) {
      const std::vector<float> row = Row(tensor, n);
      std::vector<uint32_t> words((cols + 7) / 8);
      for (int64_t k = 0; k < cols; k += 32) {
        int8_t q[32];
        const int64_t count = std::min<int64_t>(32, cols - k);
        const kernels::BF16 scale = kernels::QuantiseInt4(row.data() + k, count, q);
        Append(scales.bytes, scale);
        for (int64_t i = 0; i < count; ++i) {
          words[(k + i) / 8] |= static_cast<uint32_t>(q[i] + 8) << (k + i) % 8 * 4;
          Append(wide.bytes, static_cast<float>(q[i]) * kernels::ToFloat(scale));
        }
      }
      for (const uint32_t word : words) Append(packed.bytes, word);
    }
    TestTensor shape{"I32", {2}, ""};
    Append(shape.bytes, static_cast<int32_t>(rows));
    Append(shape.bytes, static_cast<int32_t>(cols));
    result.erase(name);
    result[name + "_packed"] = packed;
    result[name + "_scale"] = scales;
    result[name + "_shape"] = shape;
    if (dequantised != nullptr) (*dequantised)[name] = wide;
  }
  return result;
}

}  // namespace epic::model
