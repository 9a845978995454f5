// Prompts that attend expanded (docs/numerics.md), through whole steps of a small model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/huge_memory.h"
#include "kernels/reference/reference_backend.h"
#include "kernels/testing/toy_model.h"

namespace epic::kernels {
namespace {

using Prompts = std::vector<int>;  // lengths, of three sequences

constexpr uint32_t kNaN = 0x7fc00000u;  // as ToyRun reports every NaN

std::unique_ptr<Backend> Cpu(CpuOptions options) {
  options.prompt_attention = PromptAttention::kExpanded;
  CpuBackendResult made = MakeCpuBackend(options);
  EXPECT_EQ(made.error, "");
  return std::move(made.backend);
}

std::unique_ptr<Backend> Reference(ReferenceOptions options) {
  options.prompt_attention = PromptAttention::kExpanded;
  return MakeReferenceBackend(options);
}

std::vector<CpuVectors> VectorsOfThisCpu() {
  if (!DetectCpuFeatures().avx512) return {CpuVectors::kAvx2};
  return {CpuVectors::kAvx2, CpuVectors::kAvx512};
}

ToyShape RandomShape(Random& random) {
  ToyShape shape = SmallToyShape();
  shape.dtype = random.Integer(0, 1) == 0 ? DType::kBF16 : DType::kF8E4M3;
  AttentionShape& a = shape.attention;
  a.hidden = random.Integer(1, 100);
  a.heads = random.Integer(1, 9);
  a.q_rank = random.Integer(0, 1) == 0 ? 0 : random.Integer(1, 40);
  a.kv_rank = random.Integer(0, 2) == 0 ? random.Integer(100, 200) : random.Integer(1, 70);
  a.nope_dim = random.Integer(1, 70);
  a.rope_dim = 2 * random.Integer(1, 20);
  a.v_dim = random.Integer(1, 70);
  return shape;
}

Prompts RandomPrompts(Random& random) {
  return {random.Integer(0, 70), random.Integer(0, 9), random.Integer(0, 50)};
}

// A prompt's end falls before, into and after chunks, which go beyond a page and a tile of rows.
const Schedule kSchedule = {{{0, 66}, {1, 3}}, {{1, 1}, {0, 1}, {2, 37}}, {{0, 2}, {2, 5}, {1, 6}}};

TEST(ExpandedAttention, HasTheBitsOfTheReferenceInRandomShapes) {
  Random random(31);
  for (int trial = 0; trial < 24; ++trial) {
    const ToyModel model(RandomShape(random), trial);
    const Prompts prompts = RandomPrompts(random);
    const KvType kv_type = trial % 2 == 0 ? KvType::kBF16 : KvType::kFP8;
    const auto quantization = static_cast<Quantization>(random.Integer(0, 2));
    const bool pairs = trial % 3 == 0 && DetectCpuFeatures().avx512_bf16;
    const auto reference =
        Reference({.quantization = quantization, .avx512_bf16 = pairs, .kv_type = kv_type});
    const Logits expected = RunAll(model, *reference, prompts, kSchedule);
    for (const CpuVectors vectors : VectorsOfThisCpu()) {
      const auto backend = Cpu({.family = pairs ? CpuFamily::kAvx512Bf16 : CpuFamily::kFma,
                                .vectors = vectors,
                                .quantization = quantization,
                                .kv_type = kv_type,
                                .threads = random.Integer(1, 3)});
      EXPECT_EQ(backend->profile(), reference->profile());
      EXPECT_EQ(RunAll(model, *backend, prompts, kSchedule), expected)
          << backend->description() << ", trial " << trial;
    }
  }
}

TEST(ExpandedAttention, ARowDoesNotDependOnChunkingBatchOrThreads) {
  const ToyModel model(SmallToyShape(), 5);
  const Prompts prompts = {8, 60, 3};
  for (const CpuFamily family : {CpuFamily::kFma, CpuFamily::kAmxBf16}) {
    const auto backend = [&](int threads) {
      return Cpu({.family = family, .emulate_amx = true, .threads = threads});
    };
    const Logits whole = RunAll(model, *backend(1), prompts, {{{1, 70}}});
    const auto three = backend(3);
    EXPECT_EQ(RunAll(model, *three, prompts, {{{1, 70}}}), whole);
    EXPECT_EQ(RunAll(model, *three, prompts, {{{1, 1}}, {{1, 16}}, {{1, 42}}, {{1, 11}}}), whole);
    const Logits mixed =
        RunAll(model, *three, prompts, {{{0, 8}, {1, 33}}, {{2, 7}, {1, 37}, {0, 2}}});
    for (const auto& [key, bits] : whole) EXPECT_EQ(mixed.at(key), bits);
  }
}

TEST(ExpandedAttention, IsOfPromptsOnlyAndNearTheAbsorbedForm) {
  const ToyModel model(SmallToyShape(), 6);
  const auto expanded = Cpu({.family = CpuFamily::kFma, .threads = 2});
  const auto absorbed = MakeCpuBackend({.family = CpuFamily::kFma, .threads = 2}).backend;
  EXPECT_THAT(expanded->profile(), testing::HasSubstr("/expanded/split512"));
  EXPECT_THAT(absorbed->profile(), testing::HasSubstr("/absorbed/split512"));
  const Logits of_absorbed = RunAll(model, *absorbed, {40, 0, 0}, {{{0, 40}, {1, 20}}});
  EXPECT_EQ(RunAll(model, *expanded, {0, 0, 0}, {{{0, 40}, {1, 20}}}), of_absorbed);
  const Logits of_expanded = RunAll(model, *expanded, {40, 0, 0}, {{{0, 40}, {1, 20}}});
  double error = 0;
  double size = 0;
  for (const auto& [key, bits] : of_absorbed) {
    if (key.first == 1) {
      EXPECT_EQ(of_expanded.at(key), bits);
    }
    for (size_t i = 0; i < bits.size(); ++i) {
      const float a = std::bit_cast<float>(bits[i]);
      error += std::pow(a - std::bit_cast<float>(of_expanded.at(key)[i]), 2);
      size += a * a;
    }
  }
  EXPECT_GT(error, 0);
  EXPECT_LT(std::sqrt(error / size), 0.1);
}

TEST(ExpandedAttention, CrossesTheSplitsOfALongSequence) {
  const ToyModel model(SmallToyShape(), 7);
  const Prompts prompts = {541, 4, 0};
  const Schedule schedule = {{{0, 511}}, {{0, 20}, {1, 4}}, {{0, 1}}, {{0, 10}, {1, 1}}};
  const auto reference = Reference({});
  const Logits expected = RunAll(model, *reference, prompts, schedule);
  for (const CpuVectors vectors : VectorsOfThisCpu()) {
    const auto backend = Cpu({.family = CpuFamily::kFma, .vectors = vectors, .threads = 2});
    EXPECT_EQ(RunAll(model, *backend, prompts, schedule), expected);
  }
}

// So many heads that 512 keys are expanded at a time.
ToyShape ManyHeads() {
  ToyShape shape = SmallToyShape();
  AttentionShape& a = shape.attention;
  a = {.hidden = 24, .heads = 128, .kv_rank = 16, .nope_dim = 128, .rope_dim = 64, .v_dim = 128};
  a.norm_eps = a.inner_norm_eps = 1e-6f;
  a.softmax_scale = 0.07f;
  return shape;
}

TEST(ExpandedAttention, ExpandsWhatFitsAtATime) {
  const ToyModel model(ManyHeads(), 8);
  const auto expanded = Cpu({.threads = 2});
  const auto absorbed = MakeCpuBackend({.threads = 2}).backend;
  const auto of = [&](Backend& backend) {
    ToyRun run(model, backend, 1, 640);
    run.SetPrompt(0, 560);
    run.Step({{0, 520}});
    run.Step({{0, 40}});
    return run.values();
  };
  const auto found = of(*expanded);
  double error = 0;
  double size = 0;
  for (const auto& [key, values] : of(*absorbed)) {
    for (size_t i = 0; i < values.size(); ++i) {
      error += std::pow(values[i] - found.at(key)[i], 2);
      size += std::pow(values[i], 2);
    }
  }
  EXPECT_LT(std::sqrt(error / size), 0.1);
}

// Every Get of ReusableMemory overwrites what was there.
struct ScopedPoison {
  ScopedPoison() { ReusableMemory::PoisonForTests(true); }
  ~ScopedPoison() { ReusableMemory::PoisonForTests(false); }
};

TEST(ReusableMemory, NoOperationReadsBackWhatAnEarlierUseLeft) {
  const ToyModel small(SmallToyShape(), 9), wide(ManyHeads(), 9);
  for (const PromptAttention form : {PromptAttention::kAbsorbed, PromptAttention::kExpanded}) {
    for (const CpuFamily family : {CpuFamily::kFma, CpuFamily::kAmxBf16}) {
      const auto run = [&](const ToyModel& model, const Schedule& schedule) {
        const auto backend =
            MakeCpuBackend(
                {.family = family, .emulate_amx = true, .prompt_attention = form, .threads = 2})
                .backend;
        return RunAll(model, *backend, {530, 9, 50}, schedule);
      };
      const Schedule long_prompt = {{{0, 520}}, {{0, 10}}};  // of more keys than are expanded once
      const bool with_long = family == CpuFamily::kFma;
      const Logits plain = run(small, kSchedule);
      const Logits plain_long = with_long ? run(wide, long_prompt) : Logits{};
      const ScopedPoison poison;
      EXPECT_EQ(run(small, kSchedule), plain);
      if (with_long) {
        EXPECT_EQ(run(wide, long_prompt), plain_long);
      }
    }
  }
}

TEST(ExpandedAttention, ARowOfNaNsDoesNotReachEarlierRowsOrOtherSequencesOfItsChunk) {
  ToyModel model(SmallToyShape(), 4);
  const auto backend = Cpu({.family = CpuFamily::kFma, .threads = 2});
  const Schedule schedule = {{{0, 20}, {1, 20}}};
  const Logits sound = RunAll(model, *backend, {20, 20, 0}, schedule);
  model.BreakToken(model.Token(0, 5));
  const Logits broken = RunAll(model, *backend, {20, 20, 0}, schedule);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(broken.at({0, i}) == sound.at({0, i}), i < 5) << i;
    EXPECT_EQ(broken.at({1, i}), sound.at({1, i})) << i;
  }
  EXPECT_THAT(broken.at({0, 19}), testing::Each(kNaN));
}

}  // namespace
}  // namespace epic::kernels
