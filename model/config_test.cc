#include "model/config.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/testing/tiny_checkpoint.h"

namespace epic::model {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

ModelConfig Parsed(const json& config) {
  const auto parsed = ParseModelConfig(config.dump());
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.value_or(ModelConfig());
}

std::string ErrorOf(const json& config) {
  return std::string(ParseModelConfig(config.dump()).status().message());
}

json With(const char* field, const json& value) {
  json config = TinyConfig();
  config[field] = value;
  return config;
}

json Without(const char* field) {
  json config = TinyConfig();
  config.erase(field);
  return config;
}

// As transformers 5 writes the same model.
json NewSpelling() {
  json config = TinyConfig();
  config["rope_parameters"] = config["rope_scaling"];
  config["rope_parameters"]["rope_theta"] = config["rope_theta"];
  config["rope_parameters"]["rope_type"] = "yarn";
  config["rope_parameters"].erase("type");
  for (const char* field : {"rope_scaling", "rope_theta", "topk_method", "scoring_func"}) {
    config.erase(field);
  }
  config["num_local_experts"] = config["n_routed_experts"];
  config.erase("n_routed_experts");
  config["num_mtp_layers"] = config["num_nextn_predict_layers"];
  config.erase("num_nextn_predict_layers");
  config["mlp_layer_types"] = {"dense", "sparse", "sparse"};
  config.erase("first_k_dense_replace");
  config["head_dim"] = 6;
  config["dtype"] = "bfloat16";
  config["rope_interleave"] = true;
  return config;
}

TEST(ModelConfigTest, ReadsThePublishedSpelling) {
  const ModelConfig config = Parsed(TinyConfig());
  EXPECT_EQ(config.hidden_size, 100);
  EXPECT_EQ(config.q_lora_rank, 40);
  EXPECT_EQ(config.expert_count, 12);
  EXPECT_EQ(config.mtp_layer_count, 1);
  EXPECT_THAT(config.sparse_layers, ElementsAre(0, 1, 1));
  EXPECT_EQ(config.gate_method, GateMethod::kNoAuxTc);
  EXPECT_EQ(config.gate_scoring, GateScoring::kSigmoid);
  EXPECT_EQ(config.routed_scaling_factor, 2.5);
  ASSERT_TRUE(config.yarn);
  EXPECT_EQ(config.yarn->factor, 4);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2));
  EXPECT_FALSE(config.fp8_blocks);
}

TEST(ModelConfigTest, OldAndNewSpellingsAreTheSameModel) {
  EXPECT_EQ(Parsed(TinyConfig()), Parsed(NewSpelling()));
}

TEST(ModelConfigTest, V2DefaultsToGreedySoftmaxWithoutNormalisation) {
  json config = TinyConfig();
  config["model_type"] = "deepseek_v2";
  config["q_lora_rank"] = nullptr;
  for (const char* field : {"topk_method", "scoring_func", "norm_topk_prob"}) config.erase(field);
  const ModelConfig parsed = Parsed(config);
  EXPECT_EQ(parsed.gate_method, GateMethod::kGreedy);
  EXPECT_EQ(parsed.gate_scoring, GateScoring::kSoftmax);
  EXPECT_FALSE(parsed.normalise_weights);
  EXPECT_EQ(parsed.q_lora_rank, 0);
  EXPECT_EQ(parsed.group_count, 1);
}

TEST(ModelConfigTest, ReadsKimiAndMoonlight) {
  json kimi = With("model_type", "kimi_k2");
  kimi["rope_theta"] = 50000.0;
  kimi["rope_scaling"]["beta_fast"] = 1.0;
  EXPECT_EQ(Parsed(kimi).yarn->beta_fast, 1);
  EXPECT_EQ(Parsed(kimi).rope_theta, 50000);
  const ModelConfig moonlight = Parsed(With("rope_scaling", nullptr));
  EXPECT_FALSE(moonlight.yarn);
}

TEST(ModelConfigTest, ReadsFp8Blocks) {
  const json fp8 = {{"activation_scheme", "dynamic"},
                    {"fmt", "e4m3"},
                    {"quant_method", "fp8"},
                    {"weight_block_size", {128, 128}}};
  EXPECT_TRUE(Parsed(With("quantization_config", fp8)).fp8_blocks);
}

json CompressedTensors(const char* format, const json& weights, const json& activations) {
  return {
      {"quant_method", "compressed-tensors"},
      {"format", format},
      {"kv_cache_scheme", nullptr},
      {"ignore", {"lm_head", "re:.*self_attn.*"}},
      {"config_groups",
       {{"group_0",
         {{"targets", {"Linear"}}, {"weights", weights}, {"input_activations", activations}}}}}};
}

// As Kimi-K2-Thinking says it.
const json kInt4Weights = {
    {"actorder", nullptr}, {"block_structure", nullptr}, {"dynamic", false},  {"group_size", 32},
    {"num_bits", 4},       {"strategy", "group"},        {"symmetric", true}, {"type", "int"}};
const json kInt8Weights = {
    {"num_bits", 8}, {"strategy", "channel"}, {"symmetric", true}, {"type", "int"}};
const json kInt8Inputs = {
    {"num_bits", 8}, {"strategy", "token"}, {"dynamic", true}, {"type", "int"}};

TEST(ModelConfigTest, ReadsCompressedTensors) {
  const json int4 = CompressedTensors("pack-quantized", kInt4Weights, nullptr);
  EXPECT_TRUE(Parsed(With("quantization_config", int4)).int4_groups);
  const json int8 = CompressedTensors("int-quantized", kInt8Weights, kInt8Inputs);
  const ModelConfig config = Parsed(With("quantization_config", int8));
  EXPECT_TRUE(config.int8_rows);
  EXPECT_FALSE(config.int4_groups || config.fp8_blocks);
}

TEST(ModelConfigTest, RefusesOtherCompressedTensorsByName) {
  const auto error = [](const char* format, json weights, const json& activations,
                        const char* field, const json& value) {
    if (field != nullptr) weights[field] = value;
    return ErrorOf(With("quantization_config", CompressedTensors(format, weights, activations)));
  };
  EXPECT_THAT(error("pack-quantized", kInt4Weights, nullptr, "group_size", 128),
              HasSubstr("config_groups.group_0.weights: group_size \"128\" is not served; it must "
                        "be 32"));
  EXPECT_THAT(error("pack-quantized", kInt4Weights, nullptr, "symmetric", false),
              HasSubstr("symmetric \"false\""));
  EXPECT_THAT(error("pack-quantized", kInt4Weights, nullptr, "actorder", "group"),
              HasSubstr("actorder"));
  EXPECT_THAT(error("pack-quantized", kInt4Weights, nullptr, "num_bits", 3),
              HasSubstr("format \"pack-quantized of 3 bits\""));
  EXPECT_THAT(error("pack-quantized", kInt4Weights, nullptr, "num_bits", "many"),
              HasSubstr("num_bits is"));
  EXPECT_THAT(error("pack-quantized", kInt4Weights, kInt8Inputs, nullptr, 0),
              HasSubstr("input_activations"));
  EXPECT_THAT(error("int-quantized", kInt8Weights, nullptr, nullptr, 0),
              HasSubstr("input_activations"));
  EXPECT_THAT(error("int-quantized", kInt8Weights, kInt8Inputs, "strategy", "tensor"),
              HasSubstr("strategy \"tensor\""));
  EXPECT_THAT(error("float-quantized", kInt8Weights, kInt8Inputs, nullptr, 0),
              HasSubstr("float-quantized"));
  json none = CompressedTensors("pack-quantized", kInt4Weights, nullptr);
  none["config_groups"] = 7;
  EXPECT_THAT(ErrorOf(With("quantization_config", none)), HasSubstr("config_groups must be"));
  none["config_groups"] = {{"g", 7}};
  EXPECT_THAT(ErrorOf(With("quantization_config", none)), HasSubstr("config_groups.g is number"));
  json cache = CompressedTensors("pack-quantized", kInt4Weights, nullptr);
  cache["kv_cache_scheme"] = {{"num_bits", 8}};
  EXPECT_THAT(ErrorOf(With("quantization_config", cache)), HasSubstr("kv_cache_scheme"));
}

TEST(ModelConfigTest, RefusesWhatIsNotServedByName) {
  EXPECT_THAT(ErrorOf(With("model_type", "llama")), HasSubstr("model_type \"llama\""));
  EXPECT_THAT(ErrorOf(With("model_type", "deepseek_v32")), HasSubstr("deepseek_v32"));
  EXPECT_THAT(ErrorOf(With("rope_scaling", {{"type", "longrope"}, {"factor", 4}})),
              HasSubstr("rope_type \"longrope\""));
  EXPECT_THAT(ErrorOf(With("quantization_config", {{"quant_method", "awq"}})),
              HasSubstr("quant_method \"awq\""));
  EXPECT_THAT(ErrorOf(With("quantization_config",
                           {{"quant_method", "fp8"}, {"weight_block_size", {64, 64}}})),
              HasSubstr("weight_block_size \"[64,64]\""));
  EXPECT_THAT(ErrorOf(With("hidden_act", "gelu")), HasSubstr("hidden_act \"gelu\""));
  EXPECT_THAT(ErrorOf(With("topk_method", "random")), HasSubstr("topk_method \"random\""));
  EXPECT_THAT(ErrorOf(With("attention_bias", true)), HasSubstr("attention_bias"));
  EXPECT_EQ(ParseModelConfig(With("model_type", "llama").dump()).status().code(),
            absl::StatusCode::kUnimplemented);
}

TEST(ModelConfigTest, NamesFieldValueAndLimit) {
  EXPECT_THAT(ErrorOf(With("hidden_size", -3)),
              HasSubstr("hidden_size is -3; it must be a whole number in 1 .. 1048576"));
  EXPECT_THAT(ErrorOf(With("hidden_size", 2.5)), HasSubstr("hidden_size is 2.5"));
  EXPECT_THAT(ErrorOf(With("hidden_size", "big")), HasSubstr("hidden_size is \"big\""));
  EXPECT_THAT(ErrorOf(With("hidden_size", 1e300)), HasSubstr("hidden_size is 1e+300"));
  EXPECT_THAT(ErrorOf(With("num_hidden_layers", 1000000)), HasSubstr("1 .. 4096"));
  EXPECT_THAT(ErrorOf(Without("kv_lora_rank")), HasSubstr("kv_lora_rank is missing"));
  EXPECT_THAT(ErrorOf(With("qk_rope_head_dim", 7)), HasSubstr("it must be even"));
  EXPECT_THAT(ErrorOf(With("n_group", 5)), HasSubstr("n_group is 5; it must divide the 12"));
  EXPECT_THAT(ErrorOf(With("topk_group", 9)), HasSubstr("topk_group is 9"));
  EXPECT_THAT(ErrorOf(With("num_experts_per_tok", 7)), HasSubstr("num_experts_per_tok is 7"));
  EXPECT_THAT(ErrorOf(With("num_experts_per_tok", 13)), HasSubstr("1 .. 12"));
  EXPECT_THAT(ErrorOf(With("rms_norm_eps", "x")), HasSubstr("rms_norm_eps is \"x\""));
  EXPECT_THAT(ErrorOf(With("tie_word_embeddings", 1)), HasSubstr("it must be true or false"));
  EXPECT_THAT(ErrorOf(With("mlp_layer_types", {"dense"})), HasSubstr("mlp_layer_types"));
  EXPECT_THAT(ErrorOf(With("rope_scaling", {{"type", "yarn"}})), HasSubstr("factor is missing"));
  EXPECT_THAT(ErrorOf(With("rope_scaling", 3)), HasSubstr("rope_scaling is number"));
  EXPECT_THAT(ErrorOf(With("eos_token_id", -1)), HasSubstr("eos_token_id is -1"));
}

TEST(ModelConfigTest, RefusesTextThatIsNoConfig) {
  const auto error = [](std::string_view text) {
    return std::string(ParseModelConfig(text).status().message());
  };
  EXPECT_THAT(error(""), HasSubstr("is not JSON"));
  EXPECT_THAT(error("{\"a\": 1"), HasSubstr("is not JSON"));
  EXPECT_THAT(error("[1]"), HasSubstr("is array; it must be an object"));
  EXPECT_THAT(error("{\"a\": 1, \"a\": 2}"), HasSubstr("key \"a\" repeats"));
  EXPECT_THAT(error(std::string(100000, '[')), HasSubstr("nests deeper than 32"));
  EXPECT_THAT(error("{\"\xff\": 1}"), HasSubstr("is not JSON"));
}

TEST(ModelConfigTest, EveryMutationIsAStatusOrAConfigWithinLimits) {
  const std::string text = TinyConfig().dump();
  uint64_t state = 7;
  for (int round = 0; round < 3000; ++round) {
    std::string mutated = text;
    for (int i = 0; i < 3; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      mutated[(state >> 33) % mutated.size()] = static_cast<char>(state >> 25);
    }
    const auto parsed = ParseModelConfig(mutated);
    if (!parsed.ok()) continue;
    EXPECT_EQ(static_cast<int>(parsed->sparse_layers.size()), parsed->layer_count);
    EXPECT_GT(parsed->hidden_size, 0);
    EXPECT_LE(parsed->experts_per_token, parsed->expert_count);
  }
}

TEST(GenerationDefaultsTest, TakesTheUnionOfStopIds) {
  ModelConfig config;
  config.eos_token_ids = {163585};
  const auto defaults = ParseGenerationDefaults(
      R"({"temperature": 0.6, "top_p": 0.95, "eos_token_id": [163586, 163585]})", config);
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->temperature, 0.6);
  EXPECT_EQ(defaults->top_p, 0.95);
  EXPECT_THAT(defaults->eos_token_ids, ElementsAre(163585, 163586));
}

TEST(GenerationDefaultsTest, AMissingFileGivesTheDefaults) {
  ModelConfig config;
  config.eos_token_ids = {5};
  const auto defaults = ReadGenerationDefaults(EmptyFolder(), config);
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->temperature, 1);
  EXPECT_THAT(defaults->eos_token_ids, ElementsAre(5));
}

TEST(GenerationDefaultsTest, NamesWhatIsOutOfRange) {
  const auto status = ParseGenerationDefaults(R"({"top_p": 1.5})", ModelConfig()).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("top_p is 1.5"));
}

}  // namespace
}  // namespace epic::model
