// ModelConfig: what config.json says of a model of the DeepSeek family (MLA and mixture of
// experts): deepseek_v2, deepseek_v3 (and what calls itself so, as Moonlight) and kimi_k2, in the
// spelling of the published files and in that of transformers 5. Plain data, checked once.
//
//   ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfig(folder));
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace epic::model {

enum class GateScoring : uint8_t { kSoftmax, kSigmoid };
enum class GateMethod : uint8_t { kGreedy, kGroupLimitedGreedy, kNoAuxTc };

struct YarnConfig {
  double factor = 1;
  int original_max_position = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 0;            // 0: absent
  double mscale_all_dim = 0;    // 0: absent
  double attention_factor = 0;  // 0: absent, follows from the mscales

  bool operator==(const YarnConfig&) const = default;
};

struct ModelConfig {
  std::string model_type;
  int vocab_size = 0;  // rows of the embedding; the tokenizer may have fewer
  int hidden_size = 0;
  int layer_count = 0;  // the main model's; MTP layers stand after them
  int mtp_layer_count = 0;
  int max_position = 0;
  double rms_norm_eps = 0;
  bool tied_embeddings = false;

  int head_count = 0;
  int q_lora_rank = 0;  // 0: a plain q projection
  int kv_lora_rank = 0;
  int qk_nope_head_dim = 0;
  int qk_rope_head_dim = 0;
  int v_head_dim = 0;
  double rope_theta = 0;
  bool rope_interleaved = true;
  std::optional<YarnConfig> yarn;

  int intermediate_size = 0;           // of a dense layer
  std::vector<uint8_t> sparse_layers;  // [layer_count], 1: mixture of experts
  int expert_count = 0;                // 0: every layer is dense
  int expert_intermediate_size = 0;
  int experts_per_token = 0;
  int shared_expert_count = 0;  // one fused MLP of this many times expert_intermediate_size
  GateScoring gate_scoring = GateScoring::kSoftmax;
  GateMethod gate_method = GateMethod::kGreedy;
  int group_count = 1;
  int kept_group_count = 1;
  bool normalise_weights = false;
  double routed_scaling_factor = 1;

  // Which types linear weights may have beside BF16, F16 and F32; each says so by its tensors.
  bool fp8_blocks = false;   // E4M3 with 128×128 block scales
  bool int4_groups = false;  // compressed-tensors, packed: groups of 32 inputs with a BF16 scale
  bool int8_rows = false;    // compressed-tensors: a scale per output; activations INT8 by row
  int bos_token_id = -1;     // -1: none
  std::vector<int32_t> eos_token_ids;  // ascending

  bool is_sparse(int layer) const { return sparse_layers[layer] != 0; }
  int sparse_layer_count() const;
  int qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int shared_intermediate_size() const { return shared_expert_count * expert_intermediate_size; }

  bool operator==(const ModelConfig&) const = default;
};

// What generation_config.json says, over the defaults of OpenAI's API.
struct GenerationDefaults {
  double temperature = 1;
  double top_p = 1;
  int top_k = 0;  // 0: off
  double min_p = 0;
  double repetition_penalty = 1;
  std::vector<int32_t> eos_token_ids;  // the union with config.json's, ascending

  bool operator==(const GenerationDefaults&) const = default;
};

// Reads folder/config.json. NotFound if it is missing; InvalidArgument naming file, field, value
// and limit; Unimplemented for an architecture, rope type or quantisation that is not served.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& folder);
// The same from the file's text.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view text);

// Reads folder/generation_config.json; a missing file gives the defaults.
absl::StatusOr<GenerationDefaults> ReadGenerationDefaults(const std::string& folder,
                                                          const ModelConfig& config);
absl::StatusOr<GenerationDefaults> ParseGenerationDefaults(std::string_view text,
                                                           const ModelConfig& config);

}  // namespace epic::model
