// The bits of each numeric profile, and checkpoints of integer weights.
#include <algorithm>
#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/reference/reference_backend.h"
#include "model/testing/integer_checkpoint.h"
#include "model/testing/tiny_checkpoint.h"
#include "nlohmann/json.hpp"
#include "tests/golden/golden_backends.h"
#include "tests/golden/golden_run.h"

namespace epic::golden {
namespace {

std::vector<std::vector<int32_t>> SomeSequences() {
  std::vector<std::vector<int32_t>> sequences(2);
  for (int32_t i = 0; i < 150; ++i) {
    sequences[0].push_back(i * 37 % 157);
    sequences[1].push_back(i * 53 % 157);
  }
  return sequences;
}

Logits RunOn(const nlohmann::json& config, const model::TestTensors& tensors,
             kernels::Backend& backend) {
  const auto model = Loaded(model::WriteCheckpoint(config, tensors), backend);
  const auto sequences = SomeSequences();
  return model == nullptr ? Logits() : model->Run(sequences, SideBySide(sequences));
}

// Of two runs as vectors of logits.
double Cosine(const Logits& a, const Logits& b) {
  double dot = 0, norm = 0, other_norm = 0;
  for (const auto& [key, row] : a) {
    const std::vector<float>& other = b.at(key);
    for (size_t i = 0; i < row.size(); ++i) {
      dot += double{row[i]} * other[i];
      norm += double{row[i]} * row[i];
      other_norm += double{other[i]} * other[i];
    }
  }
  return dot / std::sqrt(norm * other_norm);
}

// Where weights are dequantised one by one, a packed INT4 checkpoint is the BF16 checkpoint of its
// dequantised weights, in every bit.
TEST(IntegerCheckpoints, Int4OnTilesIsItsDequantisedTwin) {
  const nlohmann::json plain = model::TinyConfig();
  for (const char* part : {".experts.", "_proj"}) {
    nlohmann::json config = plain;
    model::TestTensors twin;
    const auto packed = model::ToInt4(config, model::TinyTensors(plain, 3), part, &twin);
    const auto backend = Cpu({.family = kernels::CpuFamily::kAmxBf16, .threads = 2});
    const Logits expected = RunOn(plain, twin, *backend);
    ASSERT_FALSE(expected.empty());
    EXPECT_TRUE(RunOn(config, packed, *backend) == expected) << part;
    EXPECT_FALSE(RunOn(plain, model::TinyTensors(plain, 3), *backend) == expected);
  }
}

TEST(IntegerCheckpoints, HaveTheBitsOfTheReferenceAndAreNearTheirDequantisedTwins) {
  const nlohmann::json plain = model::TinyConfig();
  const auto reference = kernels::MakeReferenceBackend({});
  for (const bool int4 : {false, true}) {
    nlohmann::json config = plain;
    model::TestTensors twin;
    const auto source = model::TinyTensors(plain, 3);
    const auto tensors = int4 ? model::ToInt4(config, source, "_proj", &twin)
                              : model::ToInt8(config, source, "_proj", &twin);
    const Logits expected = RunOn(config, tensors, *reference);
    ASSERT_FALSE(expected.empty());
    for (const auto vectors : {kernels::CpuVectors::kAvx2, kernels::CpuVectors::kAuto}) {
      const auto backend =
          Cpu({.family = kernels::CpuFamily::kFma, .vectors = vectors, .threads = 2});
      EXPECT_TRUE(RunOn(config, tensors, *backend) == expected) << backend->description();
    }
    EXPECT_GT(Cosine(expected, RunOn(plain, twin, *reference)), 0.97);
  }
}

// Of the checkpoints that model/testing makes from seed 1. Other bits under the same profile would
// break replays and page sharing: bump the numerics version in kernels/, then note the new hashes.
struct ProfileHashes {
  const char* profile;
  const char* bf16;
  const char* fp8;
};
constexpr ProfileHashes kProfileHashes[] = {
    {"epic-numerics-3/fma/w:checkpoint,a:bf16,kv:bf16/absorbed/split512", "f65f308d772e76fa",
     "b98e6a789dbab772"},
    {"epic-numerics-3/amx-bf16/w:checkpoint,a:bf16,kv:bf16/absorbed/split512", "71901c430e98ae2a",
     "d4690c54aba11b04"},
    {"epic-numerics-3/fma/w:int8,a:int8,kv:bf16/absorbed/split512", "49c3d836480452bb",
     "951202a6e3eb0240"},
    {"epic-numerics-3/fma/w:int4,a:bf16,kv:bf16/absorbed/split512", "34ad8eab99ada7f6",
     "8c345fdf1d7bf90c"},
    {"epic-numerics-3/amx-bf16/w:int8,a:int8,kv:bf16/absorbed/split512", "2970aed615ad63a0",
     "ae53b844efe6a05b"},
    {"epic-numerics-3/amx-bf16/w:int4,a:bf16,kv:bf16/absorbed/split512", "c16f23874a4f0328",
     "e4a1f6d98c49bb06"},
    {"epic-numerics-3/avx512-bf16/w:checkpoint,a:bf16,kv:bf16/absorbed/split512",
     "e423d2dbaab20065", "491b4b0a10d9cb17"},
    {"epic-numerics-3/avx512-bf16/w:int8,a:int8,kv:bf16/absorbed/split512", "2970aed615ad63a0",
     "ae53b844efe6a05b"},
    {"epic-numerics-3/avx512-bf16/w:int4,a:bf16,kv:bf16/absorbed/split512", "4bb23d5d7744762b",
     "dfdd97d09d4905e6"}};

struct ProfileCase {
  const char* name;
  kernels::CpuFamily family;
  kernels::Quantization quantization;
};

// Of the tiny checkpoint in BF16 or FP8.
std::string HashOn(bool fp8, kernels::Backend& backend) {
  nlohmann::json config = model::TinyConfig();
  if (fp8) {
    config["hidden_size"] = 200;
    config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}};
  }
  return HashOf(RunOn(
      config, fp8 ? model::TinyFp8Tensors(config, 1) : model::TinyTensors(config, 1), backend));
}

TEST(ProfileOfFp8Pages, KeepsItsBits) {
  const auto backend = Cpu({.family = kernels::CpuFamily::kFma, .kv_type = kernels::KvType::kFP8});
  ASSERT_NE(backend, nullptr);
  EXPECT_EQ(backend->profile(), "epic-numerics-3/fma/w:checkpoint,a:bf16,kv:fp8/absorbed/split512");
  EXPECT_EQ(HashOn(false, *backend), "c5e8b202fcb62ca0");
  EXPECT_EQ(HashOn(true, *backend), "0ddcfa746a723ab0");
}

TEST(ProfileOfExpandedPrompts, KeepsItsBits) {
  const auto backend = Cpu({.family = kernels::CpuFamily::kFma,
                            .prompt_attention = kernels::PromptAttention::kExpanded});
  ASSERT_NE(backend, nullptr);
  EXPECT_EQ(backend->profile(),
            "epic-numerics-3/fma/w:checkpoint,a:bf16,kv:bf16/expanded/split512");
  EXPECT_EQ(HashOn(false, *backend), "8dac99d5c7b01405");
  EXPECT_EQ(HashOn(true, *backend), "3fe1381b44698f4c");
}

class ProfileTest : public testing::TestWithParam<ProfileCase> {};

TEST_P(ProfileTest, KeepsItsBits) {
  const auto backend =
      Cpu({.family = GetParam().family, .quantization = GetParam().quantization, .threads = 2});
  if (backend == nullptr) GTEST_SKIP() << "this CPU lacks " << GetParam().name;
  const std::string bf16 = HashOn(false, *backend);
  const std::string fp8 = HashOn(true, *backend);
  const ProfileHashes* known =
      std::ranges::find(kProfileHashes, backend->profile(), &ProfileHashes::profile);
  ASSERT_NE(known, std::end(kProfileHashes))
      << backend->profile() << " has no hashes; it gives " << bf16 << " and " << fp8;
  EXPECT_EQ(known->bf16, bf16);
  EXPECT_EQ(known->fp8, fp8);
}

constexpr ProfileCase kProfileCases[] = {
    {"fma", kernels::CpuFamily::kFma, kernels::Quantization::kNone},
    {"fma_int8", kernels::CpuFamily::kFma, kernels::Quantization::kInt8},
    {"fma_int4", kernels::CpuFamily::kFma, kernels::Quantization::kInt4},
    {"avx512_bf16", kernels::CpuFamily::kAvx512Bf16, kernels::Quantization::kNone},
    {"avx512_bf16_int8", kernels::CpuFamily::kAvx512Bf16, kernels::Quantization::kInt8},
    {"avx512_bf16_int4", kernels::CpuFamily::kAvx512Bf16, kernels::Quantization::kInt4},
    {"amx_bf16", kernels::CpuFamily::kAmxBf16, kernels::Quantization::kNone},
    {"amx_bf16_int8", kernels::CpuFamily::kAmxBf16, kernels::Quantization::kInt8},
    {"amx_bf16_int4", kernels::CpuFamily::kAmxBf16, kernels::Quantization::kInt4}};
INSTANTIATE_TEST_SUITE_P(Families, ProfileTest, testing::ValuesIn(kProfileCases),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace epic::golden
