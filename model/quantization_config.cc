#include "model/quantization_config.h"

#include "absl/strings/str_cat.h"

namespace epic::model {
namespace {

using nlohmann::json;

constexpr int kInt4Group = 32;

void ReadFp8(JsonFields& quantization, ModelConfig& config) {
  const std::string format = quantization.String({"fmt"}, "e4m3");
  const json* block = quantization.Find({"weight_block_size"});
  if (format != "e4m3") {
    quantization.NotServed("fmt", format, "e4m3");
  } else if (block == nullptr || *block != json::array({128, 128})) {
    quantization.NotServed("weight_block_size", block == nullptr ? "null" : block->dump(),
                           "[128,128]");
  }
  // Which tensors are FP8 is seen from their types; this allows them.
  config.fp8_blocks = true;
}

// The field must say `value`, or nothing where that means the same.
void Require(JsonFields& fields, const char* field, const char* value, const char* absent) {
  const std::string found = fields.String({field}, absent);
  if (found != value) fields.NotServed(field, found, value);
}

// One of config_groups: what its weights and the activations before them are.
void ReadIntegerGroup(JsonFields& group, const std::string& format, ModelConfig& config) {
  const json none = json::object();
  const json* found = group.Find({"weights"});
  JsonFields weights(found == nullptr ? none : *found, absl::StrCat(group.source(), ".weights"));
  const json* activations = group.Find({"input_activations"});
  JsonFields inputs(activations == nullptr ? none : *activations,
                    absl::StrCat(group.source(), ".input_activations"));
  const int bits = weights.Int({"num_bits"}, 1, 64);
  if (!weights.status().ok()) return group.Fail(weights.status());
  Require(weights, "type", "int", "int");
  if (!weights.Bool({"symmetric"}, true)) {
    weights.NotServed("symmetric", "false", "true");
  }
  // The other orders come with a table of which input is of which group.
  const json* order = weights.Find({"actorder"});
  if (order != nullptr && *order != json(false) && *order != "static" && *order != "weight") {
    weights.NotServed("actorder", order->dump(), "null or static");
  }
  if (format == "pack-quantized" && bits == 4) {
    Require(weights, "strategy", "group", "");
    const int size = weights.Int({"group_size"}, -1, 1 << 20);
    if (size != kInt4Group) {
      weights.NotServed("group_size", absl::StrCat(size), "32");
    }
    // Weights in INT4 meet BF16 rows; quantised rows would be other bits.
    if (activations != nullptr) {
      group.NotServed("input_activations", activations->dump(), "null");
    }
    config.int4_groups = true;
  // INT8 weights meet rows that are quantised as they come, so both sides must be named so.
  } else if (format == "int-quantized" && bits == 8) {
    Require(weights, "strategy", "channel", "");
    Require(inputs, "strategy", "token", "");
    Require(inputs, "type", "int", "int");
    const bool served = inputs.Int({"num_bits"}, 1, 64) == 8 && inputs.Bool({"dynamic"}, false) &&
                        inputs.Bool({"symmetric"}, true);
    if (!served && inputs.status().ok()) {
      group.NotServed("input_activations", activations == nullptr ? "null" : activations->dump(),
                      "symmetric, dynamic and of 8 bits per token");
    }
    // Errors of the activations are reported under their own name.
    config.int8_rows = true;
    group.Fail(inputs.status());
  } else {
    group.NotServed("format", absl::StrCat(format, " of ", bits, " bits"),
                    "pack-quantized of 4 bits or int-quantized of 8 bits");
  }
  group.Fail(weights.status());
}

void ReadCompressedTensors(JsonFields& quantization, ModelConfig& config) {
  if (const json* kv = quantization.Find({"kv_cache_scheme"}); kv != nullptr) {
    quantization.NotServed("kv_cache_scheme", kv->dump(), "null");
  }
  // Some writers name a sparsity that is none.
  if (const json* sparsity = quantization.Find({"sparsity_config"}); sparsity != nullptr) {
    JsonFields fields(*sparsity, absl::StrCat(quantization.source(), ".sparsity_config"));
    Require(fields, "format", "dense", "dense");
    quantization.Fail(fields.status());
  }
  const std::string format = quantization.String({"format"}, "");
  const json* groups = quantization.Find({"config_groups"});
  if (groups == nullptr || !groups->is_object() || groups->empty()) {
    quantization.Fail(absl::InvalidArgumentError(
        absl::StrCat(quantization.source(), ": config_groups must be an object of groups")));
    return;
  }
  // Several groups may stand side by side, such as INT4 experts beside INT8 attention.
  for (const auto& [name, value] : groups->items()) {
    JsonFields group(value, absl::StrCat(quantization.source(), ".config_groups.", name));
    if (group.status().ok()) ReadIntegerGroup(group, group.String({"format"}, format), config);
    quantization.Fail(group.status());
  }
}

}  // namespace

void ReadQuantization(JsonFields& fields, ModelConfig& config) {
  const json* found = fields.Find({"quantization_config"});
  if (found == nullptr) return;
  JsonFields quantization(*found, absl::StrCat(fields.source(), ": quantization_config"));
  const std::string method = quantization.String({"quant_method"}, "");
  if (method == "fp8") {
    ReadFp8(quantization, config);
  } else if (method == "compressed-tensors") {
    ReadCompressedTensors(quantization, config);
  } else {
    quantization.NotServed("quant_method", method, "fp8 or compressed-tensors");
  }
  fields.Fail(quantization.status());
}

}  // namespace epic::model
