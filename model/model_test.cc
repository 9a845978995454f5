#include "model/model.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/number.h"
#include "kernels/reference/reference_backend.h"
#include "model/testing/integer_checkpoint.h"
#include "model/testing/tiny_checkpoint.h"

namespace epic::model {
namespace {

using nlohmann::json;
using testing::HasSubstr;

constexpr char kQueryB[] = "model.layers.1.self_attn.q_b_proj.weight";
constexpr char kBias[] = "model.layers.1.mlp.gate.e_score_correction_bias";

json Fp8Config() {
  json config = TinyConfig();
  config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}};
  return config;
}

class ModelTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Model>> Load(const json& config, const TestTensors& tensors,
                                              const LoadOptions& options = {}) {
    const std::string folder = WriteCheckpoint(config, tensors);
    const auto parsed = ReadModelConfig(folder);
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    checkpoint_ = *Checkpoint::Open(folder);
    plan_ = PlanWeights(*parsed, *checkpoint_, options).value_or(WeightPlan());
    return Model::Load(*parsed, *checkpoint_, *backend_, options);
  }
  std::string ErrorOf(const json& config, const TestTensors& tensors) {
    return std::string(Load(config, tensors).status().message());
  }

  std::unique_ptr<kernels::Backend> backend_ = kernels::MakeReferenceBackend({});
  std::unique_ptr<Checkpoint> checkpoint_;
  WeightPlan plan_;
};

TEST_F(ModelTest, BindsEveryLayer) {
  const auto model = Load(TinyConfig(), TinyTensors(TinyConfig(), 1));
  ASSERT_TRUE(model.ok()) << model.status();
  const std::vector<Layer>& layers = (*model)->layers();
  ASSERT_EQ(layers.size(), 3);
  EXPECT_NE(layers[0].dense, nullptr);
  EXPECT_EQ(layers[0].gate, nullptr);
  EXPECT_EQ(layers[1].dense, nullptr);
  EXPECT_EQ(layers[2].experts.size(), 12);
  EXPECT_EQ(layers[2].gate->shape.group_score, kernels::GroupScore::kTopTwoSum);
  EXPECT_EQ(layers[1].attention->shape.inner_norm_eps, 1e-6f);
  EXPECT_EQ((*model)->embedding().dtype, kernels::DType::kBF16);
  EXPECT_EQ((*model)->head().rows, 157);
}

TEST_F(ModelTest, ProgressEndsAtThePlannedBytes) {
  int64_t last = 0;
  const LoadOptions options = {.progress = [&](int64_t bytes) {
    EXPECT_GE(bytes, last);
    last = bytes;
  }};
  ASSERT_TRUE(Load(Fp8Config(), TinyFp8Tensors(Fp8Config(), 1), options).ok());
  EXPECT_EQ(last, plan_.source_bytes);
  EXPECT_EQ(plan_.source_bytes, checkpoint_->tensor_bytes());
  EXPECT_EQ(plan_.embedding_bytes, 157 * 100 * 2);
  EXPECT_EQ(plan_.largest_tensor_bytes, 157 * 100 * 2);
  EXPECT_GE(plan_.packed_bytes, plan_.source_bytes - plan_.embedding_bytes);
}

int64_t BytesPacked(const Model& model) {
  int64_t bytes = model.head().packed_bytes;
  for (const Layer& layer : model.layers()) {
    bytes += layer.attention->packed_bytes;
    for (const auto* mlp : {layer.dense.get(), layer.shared.get()}) {
      if (mlp != nullptr) bytes += mlp->packed_bytes;
    }
    for (const auto& expert : layer.experts) bytes += expert->packed_bytes;
  }
  return bytes;
}

TEST_F(ModelTest, ThePlanCoversWhatIsPackedWithoutWaste) {
  using kernels::PromptAttention;
  using kernels::Quantization;
  for (const auto quantization : {Quantization::kNone, Quantization::kInt8, Quantization::kInt4}) {
    for (const auto family : {kernels::CpuFamily::kFma, kernels::CpuFamily::kAmxBf16}) {
      const auto form = family == kernels::CpuFamily::kFma ? PromptAttention::kExpanded
                                                           : PromptAttention::kAbsorbed;
      backend_ = kernels::MakeCpuBackend({.family = family,
                                          .quantization = quantization,
                                          .emulate_amx = true,
                                          .prompt_attention = form,
                                          .threads = 1})
                     .backend;
      const auto model =
          Load(Fp8Config(), TinyFp8Tensors(Fp8Config(), 1),
               {.progress = {}, .quantization = quantization, .prompt_attention = form});
      ASSERT_TRUE(model.ok()) << model.status();
      const int64_t packed = BytesPacked(**model);
      EXPECT_GE(plan_.packed_bytes, packed);
      const auto tensors = static_cast<int64_t>(checkpoint_->tensors().size());
      EXPECT_LE(plan_.packed_bytes, packed * 3 / 2 + tensors * 4096);
    }
  }
}

TEST_F(ModelTest, LoadsOnlyWantedExperts) {
  const LoadOptions options = {
      .wants_expert = [](int layer, int expert) { return layer == 1 && expert == 5; }};
  TestTensors tensors = TinyTensors(TinyConfig(), 1);
  tensors.erase("model.layers.2.mlp.experts.5.up_proj.weight");
  const auto model = Load(TinyConfig(), tensors, options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_NE((*model)->layers()[1].experts[5], nullptr);
  EXPECT_EQ((*model)->layers()[1].experts[4], nullptr);
  EXPECT_EQ((*model)->layers()[2].experts[5], nullptr);
  EXPECT_LT(plan_.source_bytes, checkpoint_->tensor_bytes());
}

TEST_F(ModelTest, IgnoresStrayBuffersAndTheMtpLayer) {
  TestTensors tensors = TinyTensors(TinyConfig(), 1);
  tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = {"BF16", {1}, "xx"};
  tensors["model.layers.3.eh_proj.weight"] = {"BF16", {1}, "xx"};
  EXPECT_TRUE(Load(TinyConfig(), tensors).ok());
}

TEST_F(ModelTest, WidensABiasInBF16) {
  TestTensors tensors = TinyTensors(TinyConfig(), 1);
  TestTensor& bias = tensors[kBias];
  std::string narrow;
  for (int i = 0; i < 12; ++i) {
    const auto value = kernels::LoadUnaligned<float>(bias.bytes.data(), i);
    const kernels::BF16 rounded = kernels::ToBF16(value);
    narrow.append(reinterpret_cast<const char*>(&rounded), 2);
  }
  bias = {"BF16", {12}, narrow};
  EXPECT_TRUE(Load(TinyConfig(), tensors).ok());
}

TEST_F(ModelTest, TiedEmbeddingsNeedNoHead) {
  json config = TinyConfig();
  config["tie_word_embeddings"] = true;
  TestTensors tensors = TinyTensors(config, 1);
  tensors.erase("lm_head.weight");
  EXPECT_TRUE(Load(config, tensors).ok());
  EXPECT_THAT(ErrorOf(TinyConfig(), tensors),
              HasSubstr("tensor lm_head.weight is missing; expected [157, 100]"));
}

TEST_F(ModelTest, NamesMissingAndMisshapenTensors) {
  TestTensors tensors = TinyTensors(TinyConfig(), 1);
  tensors[kQueryB].shape = {40, 72};
  EXPECT_THAT(ErrorOf(TinyConfig(), tensors),
              HasSubstr("q_b_proj.weight is BF16 [40, 72]; its shape must be [72, 40]"));
  tensors[kQueryB] = {"I32", {1}, "1234"};
  EXPECT_THAT(ErrorOf(TinyConfig(), tensors),
              HasSubstr("q_b_proj.weight is I32 [1]; it must be BF16, F16, F32, F8_E4M3 or I8"));
  tensors.erase(kQueryB);
  EXPECT_THAT(ErrorOf(TinyConfig(), tensors), HasSubstr("q_b_proj.weight is missing"));
}

TEST_F(ModelTest, RefusesScalesThatAreMissingOrNoPositiveNumber) {
  const std::string scale_name = absl::StrCat(kQueryB, "_scale_inv");
  for (float bad : {0.0f, -1.0f, NAN, std::numeric_limits<float>::infinity()}) {
    TestTensors tensors = TinyFp8Tensors(Fp8Config(), 1);
    std::memcpy(tensors[scale_name].bytes.data(), &bad, 4);
    EXPECT_THAT(ErrorOf(Fp8Config(), tensors), HasSubstr("q_b_proj.weight_scale_inv holds")) << bad;
  }
  TestTensors tensors = TinyFp8Tensors(Fp8Config(), 1);
  EXPECT_THAT(ErrorOf(TinyConfig(), tensors), HasSubstr("no quantization_config"));
  tensors[scale_name].shape = {1, 1, 1};
  EXPECT_THAT(ErrorOf(Fp8Config(), tensors), HasSubstr("it must be F32 [1, 1]"));
  tensors.erase(scale_name);
  EXPECT_THAT(ErrorOf(Fp8Config(), tensors), HasSubstr("q_b_proj.weight_scale_inv is missing"));
}

TEST_F(ModelTest, AnExpertOfItsOwnComputesWhatTheModelsDoesAndProvesItself) {
  const auto model = Load(Fp8Config(), TinyFp8Tensors(Fp8Config(), 1));
  ASSERT_TRUE(model.ok()) << model.status();
  const ModelConfig& config = (*model)->config();
  const auto plan = PlanExperts(config, *checkpoint_);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const auto load = [&](int layer, int expert) {
    auto loaded = LoadExpert(config, *checkpoint_, *backend_, layer, expert);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return std::move(*loaded);
  };
  const LoadedExpert expert = load(1, 5);
  EXPECT_EQ(expert.source_bytes, plan->source_bytes);
  EXPECT_EQ(expert.proof, load(1, 5).proof);
  EXPECT_NE(expert.proof, load(1, 4).proof);
  EXPECT_NE(expert.proof, load(2, 5).proof);

  std::vector<kernels::BF16> row(config.hidden_size);
  for (size_t i = 0; i < row.size(); ++i) row[i] = kernels::ToBF16(0.01f * static_cast<float>(i));
  const auto apply = [&](const kernels::Mlp& mlp) {
    std::vector<uint16_t> out(config.hidden_size);
    backend_->ApplyMlp(mlp, {kernels::DType::kBF16, 1, config.hidden_size, row.data()},
                       {kernels::DType::kBF16, 1, config.hidden_size, out.data()});
    return out;
  };
  EXPECT_EQ(apply(*expert.mlp), apply(*(*model)->layers()[1].experts[5]));
}

TEST_F(ModelTest, PlansAndLoadsExpertsOnlyWithSoundTensors) {
  TestTensors tensors = TinyTensors(TinyConfig(), 1);
  tensors.erase("model.layers.2.mlp.experts.5.up_proj.weight");
  const LoadOptions none = {.wants_expert = [](int, int) { return false; }};
  const auto model = Load(TinyConfig(), tensors, none);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(PlanExperts((*model)->config(), *checkpoint_).status().message(),
              HasSubstr("experts.5.up_proj.weight is missing"));
  EXPECT_FALSE(LoadExpert((*model)->config(), *checkpoint_, *backend_, 2, 5).ok());
  EXPECT_TRUE(LoadExpert((*model)->config(), *checkpoint_, *backend_, 2, 4).ok());
}

constexpr char kExpertUp[] = "model.layers.1.mlp.experts.3.up_proj.weight";

TEST_F(ModelTest, LoadsPackedInt4Experts) {
  json config = TinyConfig();
  TestTensors tensors = ToInt4(config, TinyTensors(config, 1), ".experts.", nullptr);
  const auto model = Load(config, tensors);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(plan_.source_bytes + 8 * 3 * 24, checkpoint_->tensor_bytes());  // but for the shapes
  // I64 shapes are as good.
  TestTensor& shape = tensors[absl::StrCat(kExpertUp, "_shape")];
  const int64_t wide[] = {44, 100};
  shape = {"I64", {2}, std::string(reinterpret_cast<const char*>(wide), 16)};
  EXPECT_TRUE(Load(config, tensors).ok());
}

TEST_F(ModelTest, RefusesHostileInt4) {
  json config = TinyConfig();
  const TestTensors sound = ToInt4(config, TinyTensors(config, 1), ".experts.", nullptr);
  const auto error = [&](const char* suffix, const TestTensor& tensor) {
    TestTensors tensors = sound;
    tensors[absl::StrCat(kExpertUp, suffix)] = tensor;
    return ErrorOf(config, tensors);
  };
  const std::string packed = sound.at(absl::StrCat(kExpertUp, "_packed")).bytes;
  EXPECT_THAT(error("_packed", {"I32", {13, 44}, packed}),
              HasSubstr("weight_packed is I32 [13, 44]; it must be I32 [44, 13]"));
  EXPECT_THAT(error("_packed", {"F32", {44, 13}, packed}), HasSubstr("must be I32 [44, 13]"));
  EXPECT_THAT(error("_shape", {"I32", {2}, std::string(8, '\1')}),
              HasSubstr("weight_shape says [16843009, 16843009]; it must say [44, 100]"));
  EXPECT_THAT(error("_shape", {"I32", {1}, "1234"}), HasSubstr("it must be I32 or I64 [2]"));
  EXPECT_THAT(error("_scale", {"BF16", {44, 3}, std::string(2 * 44 * 3, '\1')}),
              HasSubstr("weight_scale is BF16 [44, 3]; it must be BF16 [44, 4]"));
  std::string scales = sound.at(absl::StrCat(kExpertUp, "_scale")).bytes;
  scales.replace(2 * (4 * 7 + 2), 2, "\xc0\x7f");
  EXPECT_THAT(error("_scale", {"BF16", {44, 4}, scales}),
              HasSubstr("weight_scale holds nan at [7, 2]"));
  for (const char* suffix : {"_scale", "_shape"}) {
    TestTensors tensors = sound;
    tensors.erase(absl::StrCat(kExpertUp, suffix));
    EXPECT_THAT(ErrorOf(config, tensors), HasSubstr(absl::StrCat(suffix, " is missing")));
  }
  EXPECT_THAT(ErrorOf(TinyConfig(), sound), HasSubstr("no quantization_config of 4-bit"));
}

TEST_F(ModelTest, GateAndUpAreOfOneType) {
  json config = TinyConfig();
  const TestTensors sound = TinyTensors(config, 1);
  EXPECT_THAT(ErrorOf(config, ToInt4(config, sound, ".experts.3.up_", nullptr)),
              HasSubstr("are of two types"));
  EXPECT_THAT(ErrorOf(config, ToInt8(config, sound, ".experts.3.gate_", nullptr)),
              HasSubstr("are of two types"));
}

TEST_F(ModelTest, LoadsInt8AndRefusesWhatItIsNot) {
  json config = TinyConfig();
  const TestTensors sound = ToInt8(config, TinyTensors(config, 1), "_proj", nullptr);
  ASSERT_TRUE(Load(config, sound).ok());
  EXPECT_EQ(plan_.source_bytes, checkpoint_->tensor_bytes());
  const std::string name = absl::StrCat(kQueryB, "_scale");
  TestTensors tensors = sound;
  tensors[name].shape = {72};  // a vector is as good
  EXPECT_TRUE(Load(config, tensors).ok());
  tensors[name].shape = {1, 72};
  EXPECT_THAT(ErrorOf(config, tensors), HasSubstr("it must be F32 or BF16 or F16 [72, 1]"));
  tensors = sound;
  tensors[name].bytes.replace(2, 2, "\x80\xbf");
  EXPECT_THAT(ErrorOf(config, tensors), HasSubstr("weight_scale holds -1 at [1, 0]"));
  tensors.erase(name);
  EXPECT_THAT(ErrorOf(config, tensors), HasSubstr("q_b_proj.weight_scale is missing"));
  EXPECT_THAT(ErrorOf(TinyConfig(), sound), HasSubstr("is I8, but config.json has no"));
}

}  // namespace
}  // namespace epic::model
