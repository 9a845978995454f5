// Checkpoints with integer weights, as compressed-tensors writes them.
#pragma once

#include <string_view>

#include "model/testing/tiny_checkpoint.h"

namespace epic::model {

// `tensors` as compressed-tensors would write them, with the quantization_config that goes with
// them put into `config`: linear weights whose name holds `part` in INT8 by output (I8 and a column
// of BF16 scales), or in INT4 by groups of 32 (packed, with scale and shape). If `dequantised` is
// not null it becomes the same model with these weights in F32.
TestTensors ToInt8(nlohmann::json& config, const TestTensors& tensors, std::string_view part,
                   TestTensors* dequantised);
TestTensors ToInt4(nlohmann::json& config, const TestTensors& tensors, std::string_view part,
                   TestTensors* dequantised);

}  // namespace epic::model
