#include "model/testing/tiny_checkpoint.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "kernels/number.h"
#include "kernels/testing/random.h"

namespace epic::model {
namespace {

using nlohmann::json;

int64_t Count(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

template <typename T>
void Append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

class TensorMaker {
 public:
  TensorMaker(uint64_t seed, bool fp8) : random_(seed), fp8_(fp8) {}

  void Norm(const std::string& name, int64_t size) { BF16(name, {size}, 1.0f, 0.2f); }
  void Plain(const std::string& name, int64_t rows, int64_t cols) {
    BF16(name, {rows, cols}, 0, Range(cols));
  }
  void Linear(const std::string& name, int64_t rows, int64_t cols) {
    if (!fp8_) return Plain(name, rows, cols);
    TestTensor weight{.dtype = "F8_E4M3", .shape = {rows, cols}};
    for (int64_t i = 0; i < rows * cols; ++i) {
      const auto code = static_cast<uint8_t>(random_.Next());
      weight.bytes.push_back(static_cast<char>(kernels::IsE4M3NaN(code) ? 0 : code));
    }
    TestTensor scales{.dtype = "F32", .shape = {(rows + 127) / 128, (cols + 127) / 128}};
    for (int64_t i = 0; i < Count(scales.shape); ++i) {
      Append(scales.bytes, Range(cols) / 60.0f * (1.5f + random_.Real(0.5f)));
    }
    tensors_[name] = std::move(weight);
    tensors_[name + "_scale_inv"] = std::move(scales);
  }
  void Mlp(const std::string& prefix, int64_t hidden, int64_t intermediate) {
    Linear(prefix + "gate_proj.weight", intermediate, hidden);
    Linear(prefix + "up_proj.weight", intermediate, hidden);
    Linear(prefix + "down_proj.weight", hidden, intermediate);
  }
  void Bias(const std::string& name, int64_t size) {
    TestTensor tensor{.dtype = "F32", .shape = {size}};
    for (int64_t i = 0; i < size; ++i) Append(tensor.bytes, random_.Real(0.2f));
    tensors_[name] = std::move(tensor);
  }
  TestTensors Take() { return std::move(tensors_); }

 private:
  static float Range(int64_t cols) { return std::sqrt(3.0f / static_cast<float>(cols)); }
  void BF16(const std::string& name, std::vector<int64_t> shape, float centre, float range) {
    TestTensor tensor{.dtype = "BF16", .shape = std::move(shape)};
    for (int64_t i = 0; i < Count(tensor.shape); ++i) {
      Append(tensor.bytes, kernels::ToBF16(centre + random_.Real(range)));
    }
    tensors_[name] = std::move(tensor);
  }

  kernels::Random random_;
  bool fp8_;
  TestTensors tensors_;
};

void MakeAttention(TensorMaker& make, const json& c, const std::string& prefix) {
  const int64_t hidden = c["hidden_size"], heads = c["num_attention_heads"];
  const int64_t rank = c["kv_lora_rank"], rope = c["qk_rope_head_dim"];
  const int64_t nope = c["qk_nope_head_dim"], value = c["v_head_dim"];
  if (c["q_lora_rank"].is_null()) {
    make.Linear(prefix + "q_proj.weight", heads * (nope + rope), hidden);
  } else {
    const int64_t q_rank = c["q_lora_rank"];
    make.Linear(prefix + "q_a_proj.weight", q_rank, hidden);
    make.Norm(prefix + "q_a_layernorm.weight", q_rank);
    make.Linear(prefix + "q_b_proj.weight", heads * (nope + rope), q_rank);
  }
  make.Linear(prefix + "kv_a_proj_with_mqa.weight", rank + rope, hidden);
  make.Norm(prefix + "kv_a_layernorm.weight", rank);
  make.Linear(prefix + "kv_b_proj.weight", heads * (nope + value), rank);
  make.Linear(prefix + "o_proj.weight", hidden, heads * value);
}

TestTensors MakeTensors(const json& c, uint64_t seed, bool fp8) {
  TensorMaker make(seed, fp8);
  const int64_t hidden = c["hidden_size"], experts = c["n_routed_experts"];
  const int64_t width = c["moe_intermediate_size"], shared = c["n_shared_experts"];
  make.Plain("model.embed_tokens.weight", c["vocab_size"], hidden);
  make.Plain("lm_head.weight", c["vocab_size"], hidden);
  make.Norm("model.norm.weight", hidden);
  for (int layer = 0; layer < c["num_hidden_layers"]; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    make.Norm(prefix + "input_layernorm.weight", hidden);
    make.Norm(prefix + "post_attention_layernorm.weight", hidden);
    MakeAttention(make, c, prefix + "self_attn.");
    if (layer < c["first_k_dense_replace"]) {
      make.Mlp(prefix + "mlp.", hidden, c["intermediate_size"]);
      continue;
    }
    make.Plain(prefix + "mlp.gate.weight", experts, hidden);
    make.Bias(prefix + "mlp.gate.e_score_correction_bias", experts);
    make.Mlp(prefix + "mlp.shared_experts.", hidden, shared * width);
    for (int e = 0; e < experts; ++e) {
      make.Mlp(absl::StrCat(prefix, "mlp.experts.", e, "."), hidden, width);
    }
  }
  return make.Take();
}

}  // namespace

std::string SafetensorsFile(std::string_view header, int64_t data_bytes) {
  std::string file;
  Append(file, static_cast<uint64_t>(header.size()));
  file.append(header);
  file.append(data_bytes, '\0');
  return file;
}

std::string SafetensorsFile(const TestTensors& tensors) {
  json header = json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  return SafetensorsFile(header.dump(), 0) + data;
}

json TinyConfig() {
  return {{"model_type", "deepseek_v3"},
          {"architectures", {"DeepseekV3ForCausalLM"}},
          {"vocab_size", 157},
          {"hidden_size", 100},
          {"intermediate_size", 84},
          {"moe_intermediate_size", 44},
          {"num_hidden_layers", 3},
          {"num_nextn_predict_layers", 1},
          {"num_attention_heads", 3},
          {"num_key_value_heads", 3},
          {"n_shared_experts", 1},
          {"n_routed_experts", 12},
          {"num_experts_per_tok", 3},
          {"n_group", 4},
          {"topk_group", 2},
          {"routed_scaling_factor", 2.5},
          {"topk_method", "noaux_tc"},
          {"scoring_func", "sigmoid"},
          {"norm_topk_prob", true},
          {"first_k_dense_replace", 1},
          {"moe_layer_freq", 1},
          {"q_lora_rank", 40},
          {"kv_lora_rank", 24},
          {"qk_nope_head_dim", 18},
          {"qk_rope_head_dim", 6},
          {"v_head_dim", 14},
          {"hidden_act", "silu"},
          {"max_position_embeddings", 512},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 10000},
          {"rope_scaling",
           {{"type", "yarn"},
            {"factor", 4},
            {"original_max_position_embeddings", 128},
            {"beta_fast", 32},
            {"beta_slow", 1},
            {"mscale", 1.0},
            {"mscale_all_dim", 1.0}}},
          {"attention_bias", false},
          {"tie_word_embeddings", false},
          {"bos_token_id", 1},
          {"eos_token_id", 2}};
}

json TinyCudaConfig() {
  json config = TinyConfig();
  config.update({{"hidden_size", 144},
                 {"intermediate_size", 96},
                 {"moe_intermediate_size", 48},
                 {"num_hidden_layers", 2},
                 {"num_attention_heads", 2},
                 {"num_key_value_heads", 2},
                 {"q_lora_rank", 48},
                 {"kv_lora_rank", 128},
                 {"qk_nope_head_dim", 32},
                 {"qk_rope_head_dim", 64},
                 {"v_head_dim", 16}});
  return config;
}

TestTensors TinyTensors(const json& config, uint64_t seed) {
  return MakeTensors(config, seed, false);
}

TestTensors TinyFp8Tensors(const json& config, uint64_t seed) {
  return MakeTensors(config, seed, true);
}

std::string EmptyFolder() {
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  static int count = 0;
  const std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) /
      absl::StrCat("epic_model_", test->test_suite_name(), "_", test->name(), "_", count++);
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder.string();
}

void WriteFile(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string WriteCheckpoint(const json& config, const TestTensors& tensors) {
  const std::string folder = EmptyFolder();
  WriteFile(folder + "/config.json", config.dump());
  WriteFile(folder + "/model.safetensors", SafetensorsFile(tensors));
  return folder;
}

}  // namespace epic::model
