// quantization_config of a config.json: FP8 in blocks of 128×128 (quant_method fp8), and of
// compressed-tensors INT4 in groups of 32 inputs and INT8 by output.
#pragma once

#include "model/config.h"
#include "model/json.h"

namespace epic::model {

// Sets config's fp8_blocks, int4_groups and int8_rows; what is wrong or not served goes to
// `fields`.
void ReadQuantization(JsonFields& fields, ModelConfig& config);

}  // namespace epic::model
