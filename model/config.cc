#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/json.h"
#include "model/quantization_config.h"

namespace epic::model {
namespace {

using nlohmann::json;

constexpr int64_t kFileBytesMax = 4 << 20;
// Limits keep every product of two sizes within 64 bits, and name absurd files before allocation.
constexpr int kSizeMax = 1 << 20;  // of any dimension
constexpr int kLayersMax = 4096;
// The largest published vocabulary has about 2^18 ids.
constexpr int kVocabMax = 1 << 22;
constexpr int kPositionsMax = 1 << 20;  // the rope table's angles stay exact up to it

bool IsV2(const ModelConfig& config) { return config.model_type == "deepseek_v2"; }

void ReadType(JsonFields& fields, ModelConfig& config) {
  config.model_type = fields.String({"model_type"}, "");
  const std::set<std::string> served = {"deepseek_v2", "deepseek_v3", "kimi_k2"};
  if (!served.contains(config.model_type)) {
    fields.NotServed("model_type", config.model_type, "deepseek_v2, deepseek_v3 or kimi_k2");
  }
  const std::string activation = fields.String({"hidden_act"}, "silu");
  if (activation != "silu") fields.NotServed("hidden_act", activation, "silu");
  if (fields.Bool({"attention_bias"}, false)) {
    fields.NotServed("attention_bias", "true", "false");
  }
}

void ReadSizes(JsonFields& fields, ModelConfig& config) {
  config.vocab_size = fields.Int({"vocab_size"}, 1, kVocabMax);
  config.hidden_size = fields.Int({"hidden_size"}, 1, kSizeMax);
  // Layers of multi-token prediction stand behind these in a checkpoint and are not counted here.
  config.layer_count = fields.Int({"num_hidden_layers"}, 1, kLayersMax);
  config.mtp_layer_count = fields.Int({"num_nextn_predict_layers", "num_mtp_layers"}, 0, 64, 0);
  config.max_position = fields.Int({"max_position_embeddings"}, 1, kPositionsMax);
  config.rms_norm_eps = fields.Real({"rms_norm_eps"}, 0, 1, 1e-6);
  config.tied_embeddings = fields.Bool({"tie_word_embeddings"}, false);
  config.intermediate_size = fields.Int({"intermediate_size"}, 1, kSizeMax);
  config.bos_token_id = fields.Int({"bos_token_id"}, 0, kVocabMax, -1);
  config.eos_token_ids = fields.Ids({"eos_token_id"}, kVocabMax);
}

void ReadAttention(JsonFields& fields, ModelConfig& config) {
  config.head_count = fields.Int({"num_attention_heads"}, 1, 4096);
  config.q_lora_rank = fields.Int({"q_lora_rank"}, 1, kSizeMax, 0);
  config.kv_lora_rank = fields.Int({"kv_lora_rank"}, 1, kSizeMax);
  config.qk_nope_head_dim = fields.Int({"qk_nope_head_dim"}, 1, 65536);
  config.qk_rope_head_dim = fields.Int({"qk_rope_head_dim"}, 2, 65536);
  config.v_head_dim = fields.Int({"v_head_dim"}, 1, 65536);
  config.rope_interleaved = fields.Bool({"rope_interleave"}, true);
  // Rotary embedding turns pairs.
  if (config.qk_rope_head_dim % 2 != 0) {
    fields.Fail(absl::InvalidArgumentError(absl::StrCat(
        fields.source(), ": qk_rope_head_dim is ", config.qk_rope_head_dim, "; it must be even")));
  }
}

YarnConfig ReadYarn(JsonFields& rope) {
  YarnConfig yarn;
  yarn.factor = rope.Real({"factor"}, 1, 1e6);
  yarn.original_max_position = rope.Int({"original_max_position_embeddings"}, 1, kPositionsMax);
  yarn.beta_fast = rope.Real({"beta_fast"}, 1e-3, 1e6, 32);
  yarn.beta_slow = rope.Real({"beta_slow"}, 1e-3, 1e6, 1);
  // 0 means absent: DeepSeek's files give both, and their quotient scales the table (model/rope.h).
  yarn.mscale = rope.Real({"mscale"}, 0, 1e3, 0);
  yarn.mscale_all_dim = rope.Real({"mscale_all_dim"}, 0, 1e3, 0);
  yarn.attention_factor = rope.Real({"attention_factor"}, 1e-3, 1e3, 0);
  // Without truncation the ramp of frequencies begins at fractions, which is not implemented.
  if (!rope.Bool({"truncate"}, true)) {
    rope.NotServed("truncate", "false", "true");
  }
  return yarn;
}

// transformers 5 puts everything into rope_parameters; before, rope_theta stood beside a
// rope_scaling that could be null.
void ReadRope(JsonFields& fields, ModelConfig& config) {
  // The spelling decides where to look for everything that belongs to the rotary embedding.
  const bool is_new = fields.Has({"rope_parameters"});
  const json* scaling = fields.Find({is_new ? "rope_parameters" : "rope_scaling"});
  const json empty = json::object();
  JsonFields rope(scaling == nullptr ? empty : *scaling,
                  absl::StrCat(fields.source(), ": ", is_new ? "rope_parameters" : "rope_scaling"));
  // Files in the new spelling without rope_theta inside still have it beside.
  JsonFields& theta_fields = rope.Has({"rope_theta"}) ? rope : fields;
  config.rope_theta = theta_fields.Real({"rope_theta"}, 1.001, 1e12, 10000.0);
  const std::string type = rope.String({"rope_type", "type"}, "default");
  if (type == "yarn") {
    config.yarn = ReadYarn(rope);
  } else if (type != "default") {
    rope.NotServed("rope_type", type, "default or yarn");
  }
  fields.Fail(rope.status());
}

void ReadSparseLayers(JsonFields& fields, ModelConfig& config) {
  // DeepSeek's own spelling; transformers 5 writes mlp_layer_types, which wins where both stand.
  const int first = fields.Int({"first_k_dense_replace"}, 0, kLayersMax, 0);
  const int every = fields.Int({"moe_layer_freq"}, 1, kLayersMax, 1);
  config.sparse_layers.assign(config.layer_count, 0);
  for (int layer = first; layer < config.layer_count; ++layer) {
    config.sparse_layers[layer] = layer % every == 0 ? 1 : 0;
  }
  const json* types = fields.Find({"mlp_layer_types"});
  if (types == nullptr) return;
  const bool fits =
      types->is_array() && static_cast<int>(types->size()) == config.layer_count &&
      std::ranges::all_of(*types, [](const json& t) { return t == "dense" || t == "sparse"; });
  if (!fits) {
    fields.Fail(absl::InvalidArgumentError(
        absl::StrCat(fields.source(),
                     ": mlp_layer_types must list \"dense\" or \"sparse\" for "
                     "each of the ",
                     config.layer_count, " layers")));
    return;
  }
  for (int layer = 0; layer < config.layer_count; ++layer) {
    config.sparse_layers[layer] = (*types)[layer] == "sparse" ? 1 : 0;
  }
}

void ReadGate(JsonFields& fields, ModelConfig& config) {
  // The defaults are those of each generation's own code, for files that leave the fields out.
  const std::string scoring = fields.String({"scoring_func"}, IsV2(config) ? "softmax" : "sigmoid");
  const std::string method = fields.String({"topk_method"}, IsV2(config) ? "greedy" : "noaux_tc");
  if (scoring != "softmax" && scoring != "sigmoid") {
    fields.NotServed("scoring_func", scoring, "softmax or sigmoid");
  }
  config.gate_scoring = scoring == "softmax" ? GateScoring::kSoftmax : GateScoring::kSigmoid;
  if (method == "greedy") {
    config.gate_method = GateMethod::kGreedy;
  } else if (method == "group_limited_greedy") {
    config.gate_method = GateMethod::kGroupLimitedGreedy;
  } else if (method == "noaux_tc") {
    config.gate_method = GateMethod::kNoAuxTc;
  } else {
    fields.NotServed("topk_method", method, "greedy, group_limited_greedy or noaux_tc");
  }
  // V3's code normalises by default, V2's does not.
  config.normalise_weights = fields.Bool({"norm_topk_prob"}, !IsV2(config));
  config.routed_scaling_factor = fields.Real({"routed_scaling_factor"}, 0, 1e6, 1.0);
  // DeepSeek-V2's own code scales only what it does not normalise.
  if (IsV2(config) && config.normalise_weights) config.routed_scaling_factor = 1;
}

void CheckGroups(JsonFields& fields, const ModelConfig& config) {
  const auto fail = [&](auto... parts) {
    fields.Fail(absl::InvalidArgumentError(absl::StrCat(fields.source(), ": ", parts...)));
  };
  const int experts = config.expert_count;
  const int groups = config.group_count;
  if (experts % groups != 0) {
    fail("n_group is ", groups, "; it must divide the ", experts, " routed experts");
  } else if (config.kept_group_count > groups) {
    fail("topk_group is ", config.kept_group_count, "; it must be at most n_group ", groups);
  } else if (config.experts_per_token > config.kept_group_count * (experts / groups)) {
    fail("num_experts_per_tok is ", config.experts_per_token, "; the ", config.kept_group_count,
         " kept groups hold ", config.kept_group_count * (experts / groups), " experts");
  }
}

void ReadExperts(JsonFields& fields, ModelConfig& config) {
  config.expert_count =
      fields.Int({"n_routed_experts", "num_local_experts", "num_experts"}, 1, 65536, 0);
  // A dense model of the family: all layers use the plain MLP.
  if (config.expert_count == 0) {
    config.sparse_layers.assign(config.layer_count, 0);
    return;
  }
  ReadSparseLayers(fields, config);
  config.expert_intermediate_size = fields.Int({"moe_intermediate_size"}, 1, kSizeMax);
  config.experts_per_token = fields.Int({"num_experts_per_tok"}, 1, config.expert_count);
  config.shared_expert_count = fields.Int({"n_shared_experts"}, 0, 1024, 0);
  ReadGate(fields, config);
  // The greedy gate ignores groups, so its files may hold values that do not fit.
  if (config.gate_method != GateMethod::kGreedy) {
    config.group_count = fields.Int({"n_group"}, 1, config.expert_count, 1);
    config.kept_group_count = fields.Int({"topk_group"}, 1, config.expert_count, 1);
  }
  // The checks divide by what was read.
  if (fields.status().ok()) CheckGroups(fields, config);
}

void ReadEos(JsonFields& fields, const ModelConfig& config, GenerationDefaults& defaults) {
  std::vector<int32_t> ids = fields.Ids({"eos_token_id"}, kVocabMax);
  // Both files count: generation_config.json often lists more ends than config.json, and sometimes
  // fewer.
  std::set<int32_t> all(config.eos_token_ids.begin(), config.eos_token_ids.end());
  all.insert(ids.begin(), ids.end());
  defaults.eos_token_ids.assign(all.begin(), all.end());
}

}  // namespace

int ModelConfig::sparse_layer_count() const {
  return std::accumulate(sparse_layers.begin(), sparse_layers.end(), 0);
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view text) {
  ASSIGN_OR_RETURN(const json object, ParseJson(text, "config.json"));
  JsonFields fields(object, "config.json");
  RETURN_IF_ERROR(fields.status());
  ModelConfig config;
  ReadType(fields, config);
  RETURN_IF_ERROR(fields.status());
  ReadSizes(fields, config);
  ReadAttention(fields, config);
  ReadRope(fields, config);
  // Experts are read last: their checks need the sizes.
  if (fields.status().ok()) ReadExperts(fields, config);
  ReadQuantization(fields, config);
  RETURN_IF_ERROR(fields.status());
  return config;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadTextFile(absl::StrCat(folder, "/config.json"), kFileBytesMax));
  return ParseModelConfig(text);
}

absl::StatusOr<GenerationDefaults> ParseGenerationDefaults(std::string_view text,
                                                           const ModelConfig& config) {
  ASSIGN_OR_RETURN(const json object, ParseJson(text, "generation_config.json"));
  JsonFields fields(object, "generation_config.json");
  GenerationDefaults defaults;
  defaults.temperature = fields.Real({"temperature"}, 0, 100, 1.0);
  defaults.top_p = fields.Real({"top_p"}, 1e-6, 1, 1.0);
  defaults.top_k = fields.Int({"top_k"}, 0, kVocabMax, 0);
  defaults.min_p = fields.Real({"min_p"}, 0, 1, 0.0);
  defaults.repetition_penalty = fields.Real({"repetition_penalty"}, 1e-3, 1e3, 1.0);
  ReadEos(fields, config, defaults);
  RETURN_IF_ERROR(fields.status());
  return defaults;
}

absl::StatusOr<GenerationDefaults> ReadGenerationDefaults(const std::string& folder,
                                                          const ModelConfig& config) {
  const absl::StatusOr<std::string> text =
      ReadTextFile(absl::StrCat(folder, "/generation_config.json"), kFileBytesMax);
  // The file is optional; its defaults are those of plain sampling.
  if (absl::IsNotFound(text.status())) return ParseGenerationDefaults("{}", config);
  RETURN_IF_ERROR(text.status());
  return ParseGenerationDefaults(*text, config);
}

}  // namespace epic::model
