#include "kernels/cpu/cpu_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>

#include "kernels/cpu/amx_probe.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/testing/test_backends.h"
#include "kernels/reference/reference_backend.h"
#include "kernels/testing/toy_model.h"

namespace epic::kernels {
namespace {

const Schedule kMixed = {{{0, 9}}, {{0, 1}, {1, 70}}, {{2, 5}, {0, 1}, {1, 3}}, {{1, 1}}};

class FamilyFma : public testing::TestWithParam<int> {};

ToyShape Variant(int variant) {
  ToyShape shape = SmallToyShape();
  AttentionShape& a = shape.attention;
  switch (variant) {
    case 0:
      break;
    case 1:  // FP8, block scales, grouped sigmoid
      shape.dtype = DType::kF8E4M3;
      a.hidden = 172;
      a.kv_rank = 40;
      shape.intermediate = 136;
      shape.gate = {.experts = 10,
                    .top_k = 4,
                    .score = GateScore::kSigmoid,
                    .group_score = GroupScore::kTopTwoSum,
                    .groups = 5,
                    .kept_groups = 3,
                    .normalise = true,
                    .scaling = 2.5f};
      break;
    case 2:  // no q_lora, odd sizes, half-split rope, FP32 sources
      shape.dtype = DType::kF32;
      shape.router_dtype = DType::kF32;
      a.hidden = 71;
      a.heads = 5;
      a.q_rank = 0;
      a.kv_rank = 13;
      a.nope_dim = 7;
      a.rope_dim = 10;
      a.v_dim = 9;
      a.rope_interleaved = false;
      shape.intermediate = 33;
      shape.gate = {.experts = 5, .top_k = 2};
      break;
    default:  // 17 heads: more than one vector; FP16 sources; group-limited greedy
      shape.dtype = DType::kF16;
      shape.router_dtype = DType::kF16;
      a.heads = 17;
      a.hidden = 48;
      shape.gate = {.experts = 6,
                    .top_k = 2,
                    .group_score = GroupScore::kMax,
                    .groups = 3,
                    .kept_groups = 1,
                    .scaling = 16.0f};
  }
  return shape;
}

TEST_P(FamilyFma, HasTheBitsOfTheReferenceOnEveryVectorWidthAndThreadCount) {
  const ToyModel model(Variant(GetParam()), 7 + GetParam());
  const Logits expected = Reference(model, kMixed);
  for (const auto& [key, bits] : expected) EXPECT_THAT(bits, testing::Each(testing::Ne(kNaN)));
  for (const CpuVectors vectors : VectorsOfThisCpu()) {
    for (int threads = 1; threads <= 4; ++threads) {
      const auto backend = Cpu(vectors, threads);
      EXPECT_EQ(RunAll(model, *backend, kMixed), expected)
          << backend->description() << ", variant " << GetParam();
    }
  }
}

TEST_P(FamilyFma, ARowDoesNotDependOnChunkingOrBatch) {
  const ToyModel model(Variant(GetParam()), 70 + GetParam());
  Schedule one_by_one;
  for (int i = 0; i < 70; ++i) one_by_one.push_back({{1, 1}});
  const auto backend = Cpu(CpuVectors::kAuto, 2);
  const Logits whole = RunAll(model, *backend, {{{1, 70}}});
  EXPECT_EQ(RunAll(model, *backend, one_by_one), whole);
  EXPECT_EQ(RunAll(model, *backend, {{{1, 1}}, {{1, 62}}, {{1, 2}}, {{1, 5}}}), whole);
  const Logits mixed = RunAll(model, *backend, {{{0, 8}, {1, 33}}, {{2, 7}, {1, 37}, {0, 2}}});
  for (const auto& [key, bits] : whole) EXPECT_EQ(mixed.at(key), bits);
}

INSTANTIATE_TEST_SUITE_P(Variants, FamilyFma, testing::Values(0, 1, 2, 3));

// Relative error of all logits.
double Distance(const ToyRun& a, const ToyRun& b) {
  double error = 0;
  double size = 0;
  for (const auto& [key, values] : a.values()) {
    for (size_t i = 0; i < values.size(); ++i) {
      error += std::pow(values[i] - b.values().at(key)[i], 2);
      size += std::pow(values[i], 2);
    }
  }
  return std::sqrt(error / size);
}

class FamilyAmxBf16 : public testing::TestWithParam<int> {};

TEST_P(FamilyAmxBf16, ARowDoesNotDependOnChunkingBatchOrThreads) {
  const ToyModel model(Variant(GetParam()), 70 + GetParam());
  const auto backend = EmulatedAmx(1);
  const Logits whole = RunAll(model, *backend, {{{1, 70}}});
  for (const int threads : {2, 3}) {
    EXPECT_EQ(RunAll(model, *EmulatedAmx(threads), {{{1, 70}}}), whole) << threads;
  }
  EXPECT_EQ(RunAll(model, *backend, {{{1, 1}}, {{1, 16}}, {{1, 17}}, {{1, 36}}}), whole);
  const Logits mixed = RunAll(model, *backend, {{{0, 8}, {1, 33}}, {{2, 7}, {1, 37}, {0, 2}}});
  for (const auto& [key, bits] : whole) EXPECT_EQ(mixed.at(key), bits);
}

TEST_P(FamilyAmxBf16, IsCloseToFma) {
  const ToyModel model(Variant(GetParam()), 11);
  const auto amx = EmulatedAmx(2);
  const auto fma = Cpu(CpuVectors::kAuto, 2);
  ToyRun a(model, *amx, 1, 64);
  ToyRun b(model, *fma, 1, 64);
  a.Step({{0, 9}});
  b.Step({{0, 9}});
  EXPECT_LT(Distance(a, b), 0.02);
}

INSTANTIATE_TEST_SUITE_P(Variants, FamilyAmxBf16, testing::Values(0, 1, 2, 3));

class Quantized : public testing::TestWithParam<std::tuple<int, Quantization>> {
 protected:
  const int variant_ = std::get<0>(GetParam());
  const Quantization quantization_ = std::get<1>(GetParam());
};

TEST_P(Quantized, FmaHasTheBitsOfTheReference) {
  const ToyModel model(Variant(variant_), 17 + variant_);
  const auto reference = MakeReferenceBackend({.quantization = quantization_});
  const Logits expected = RunAll(model, *reference, kMixed);
  EXPECT_NE(expected, Reference(model, kMixed));
  for (const auto& [key, bits] : expected) EXPECT_THAT(bits, testing::Each(testing::Ne(kNaN)));
  for (const CpuVectors vectors : VectorsOfThisCpu()) {
    for (const int threads : {1, 3}) {
      const auto backend = Cpu(vectors, threads, quantization_);
      EXPECT_EQ(backend->profile(), reference->profile());
      EXPECT_EQ(RunAll(model, *backend, kMixed), expected) << backend->description();
    }
  }
}

TEST_P(Quantized, ARowDoesNotDependOnChunkingBatchOrThreadsOnAmx) {
  const ToyModel model(Variant(variant_), 27 + variant_);
  const Logits whole = RunAll(model, *EmulatedAmx(1, quantization_), {{{1, 70}}});
  const auto backend = EmulatedAmx(3, quantization_);
  EXPECT_EQ(RunAll(model, *backend, {{{1, 1}}, {{1, 16}}, {{1, 17}}, {{1, 36}}}), whole);
  const Logits mixed = RunAll(model, *backend, {{{0, 8}, {1, 33}}, {{2, 7}, {1, 37}, {0, 2}}});
  for (const auto& [key, bits] : whole) EXPECT_EQ(mixed.at(key), bits);
}

TEST_P(Quantized, IsNearTheUnquantised) {
  const ToyModel model(Variant(variant_), 37 + variant_);
  const auto backend = Cpu(CpuVectors::kAuto, 2, quantization_);
  const auto exact = MakeReferenceBackend({});
  ToyRun a(model, *exact, 1, 64);
  ToyRun b(model, *backend, 1, 64);
  a.Step({{0, 4}});
  b.Step({{0, 4}});
  // Where an expert changes, a position is another computation: the first is judged.
  const std::vector<float>& expected = a.values().begin()->second;
  const std::vector<float>& found = b.values().begin()->second;
  double dot = 0, norm = 0, other_norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    dot += double{expected[i]} * found[i];
    norm += double{expected[i]} * expected[i];
    other_norm += double{found[i]} * found[i];
  }
  EXPECT_GT(dot / std::sqrt(norm * other_norm), quantization_ == Quantization::kInt8 ? 0.99 : 0.8);
}

INSTANTIATE_TEST_SUITE_P(Variants, Quantized,
                         testing::Combine(testing::Values(0, 1, 2, 3),
                                          testing::Values(Quantization::kInt8,
                                                          Quantization::kInt4)));

class FamilyAvx512Bf16 : public testing::TestWithParam<std::tuple<int, Quantization>> {};

TEST_P(FamilyAvx512Bf16, HasTheBitsOfTheReferenceOnAnyThreadCount) {
  if (!DetectCpuFeatures().avx512_bf16) GTEST_SKIP() << "no AVX-512 BF16 here";
  const auto [variant, quantization] = GetParam();
  const ToyModel model(Variant(variant), 47 + variant);
  const auto reference = MakeReferenceBackend({.quantization = quantization, .avx512_bf16 = true});
  const Logits expected = RunAll(model, *reference, kMixed);
  for (const int threads : {1, 3}) {
    const auto backend = Avx512Bf16(threads, quantization);
    EXPECT_EQ(backend->profile(), reference->profile());
    EXPECT_EQ(RunAll(model, *backend, kMixed), expected) << variant;
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, FamilyAvx512Bf16,
                         testing::Combine(testing::Values(0, 1, 2, 3),
                                          testing::Values(Quantization::kNone, Quantization::kInt8,
                                                          Quantization::kInt4)));

TEST(CpuBackend, TakesAmxWhereItWorksAndSaysWhyNot) {
  const CpuBackendResult chosen = MakeCpuBackend({.threads = 1});
  const CpuBackendResult forced = MakeCpuBackend({.family = CpuFamily::kAmxBf16, .threads = 1});
  ASSERT_NE(chosen.backend, nullptr);
  if (AmxFailure().empty()) {
    EXPECT_THAT(chosen.backend->profile(), testing::HasSubstr("/amx-bf16/"));
    EXPECT_EQ(chosen.note, "");
    EXPECT_NE(forced.backend, nullptr);
  } else {
    EXPECT_THAT(chosen.backend->profile(),
                testing::HasSubstr(DetectCpuFeatures().fast_bf16 ? "/avx512-bf16/" : "/fma/"));
    EXPECT_THAT(chosen.note, testing::HasSubstr(AmxFailure()));
    EXPECT_EQ(forced.backend, nullptr);
    EXPECT_THAT(forced.error, testing::HasSubstr(AmxFailure()));
  }
}

TEST(CpuBackend, RefusesAvx512Bf16WhereTheCpuLacksIt) {
  const auto made = MakeCpuBackend({.family = CpuFamily::kAvx512Bf16, .threads = 1});
  EXPECT_EQ(made.backend != nullptr, DetectCpuFeatures().avx512_bf16);
  EXPECT_EQ(made.error.empty(), DetectCpuFeatures().avx512_bf16);
}

TEST(CpuBackend, RealAndEmulatedAmxGiveTheSameBits) {
  if (!AmxFailure().empty()) GTEST_SKIP() << AmxFailure();
  for (const int variant : {0, 1, 2, 3}) {
    const ToyModel model(Variant(variant), 13);
    const auto real = MakeCpuBackend({.family = CpuFamily::kAmxBf16, .threads = 2}).backend;
    EXPECT_EQ(RunAll(model, *real, kMixed), RunAll(model, *EmulatedAmx(2), kMixed)) << variant;
  }
}

ToyShape RandomShape(Random& random) {
  constexpr DType kTypes[] = {DType::kBF16, DType::kF8E4M3, DType::kF32, DType::kF16};
  ToyShape shape = SmallToyShape();
  shape.vocab = random.Integer(0, 3) == 0 ? 1 : random.Integer(2, 90);
  shape.intermediate = random.Integer(1, 150);
  shape.dtype = kTypes[random.Integer(0, 3)];
  AttentionShape& a = shape.attention;
  a.hidden = random.Integer(1, 160);
  a.heads = random.Integer(1, 23);
  a.q_rank = random.Integer(0, 1) == 0 ? 0 : random.Integer(1, 40);
  a.kv_rank = random.Integer(0, 2) == 0 ? random.Integer(100, 270) : random.Integer(1, 70);
  a.nope_dim = random.Integer(1, 40);
  a.rope_dim = 2 * random.Integer(1, 20);
  a.v_dim = random.Integer(1, 40);
  a.rope_interleaved = random.Integer(0, 1) == 0;
  shape.gate.experts = random.Integer(0, 1) == 0 ? 5 : random.Integer(1, 40);
  shape.gate.top_k = random.Integer(1, std::min(4, shape.gate.experts));
  return shape;
}

// Chunks that end before, at and after a page's edge, alone and in company.
Schedule RandomSchedule(Random& random) {
  const int first = 64 - random.Integer(0, 2);
  Schedule schedule = {{{0, first}, {1, random.Integer(1, 5)}},
                       {{0, 1}, {2, random.Integer(1, 40)}, {1, 1}}};
  for (int i = 0; i < 3; ++i) schedule.push_back({{1, random.Integer(1, 30)}, {0, 1}});
  return schedule;
}

TEST(CpuBackend, CallsTheInterludeWithinOperations) {
  const ToyModel model(SmallToyShape(), 1);
  const auto backend = Cpu(CpuVectors::kAuto, 2);
  int calls = 0;
  backend->SetInterlude([&] { ++calls; });
  const Logits logits = RunAll(model, *backend, kMixed);
  EXPECT_GT(calls, 100);
  backend->SetInterlude({});
  const int before = calls;
  EXPECT_EQ(RunAll(model, *backend, kMixed), logits);
  EXPECT_EQ(calls, before);
}

TEST(CpuBackend, HasTheBitsOfTheReferenceInRandomShapes) {
  Random random(2026);
  for (int trial = 0; trial < 24; ++trial) {
    const ToyModel model(RandomShape(random), trial);
    const Schedule schedule = RandomSchedule(random);
    const KvType kv_type = trial % 2 == 0 ? KvType::kBF16 : KvType::kFP8;
    const Quantization quantization = static_cast<Quantization>(random.Integer(0, 2));
    const auto reference = MakeReferenceBackend({.quantization = quantization, .kv_type = kv_type});
    const Logits expected = RunAll(model, *reference, schedule);
    for (const CpuVectors vectors : VectorsOfThisCpu()) {
      const auto backend = Cpu(vectors, random.Integer(1, 3), quantization, kv_type);
      EXPECT_EQ(RunAll(model, *backend, schedule), expected)
          << backend->description() << ", trial " << trial;
    }
  }
}

TEST(CpuBackend, Avx512Bf16HasTheBitsOfTheReferenceInRandomShapes) {
  if (!DetectCpuFeatures().avx512_bf16) GTEST_SKIP() << "no AVX-512 BF16 here";
  Random random(2027);
  for (int trial = 0; trial < 24; ++trial) {
    const ToyModel model(RandomShape(random), trial);
    const Schedule schedule = RandomSchedule(random);
    const KvType kv_type = trial % 2 == 0 ? KvType::kBF16 : KvType::kFP8;
    const auto quantization = static_cast<Quantization>(random.Integer(0, 2));
    const auto reference = MakeReferenceBackend(
        {.quantization = quantization, .avx512_bf16 = true, .kv_type = kv_type});
    const auto backend = Avx512Bf16(random.Integer(1, 3), quantization, kv_type);
    EXPECT_EQ(RunAll(model, *backend, schedule), RunAll(model, *reference, schedule)) << trial;
  }
}

TEST(CpuBackend, NaNScalesAndWeightsGiveNaNsAndNoCrash) {
  ToyShape shape = Variant(1);
  ToyModel model(shape, 5);
  const auto cpu = Cpu(CpuVectors::kAuto, 2);
  const auto reference = MakeReferenceBackend({});
  Random random(9);
  ToyMatrix weight(random, DType::kF8E4M3, 150, 300);
  weight.scales()[4] = std::numeric_limits<float>::quiet_NaN();  // rows 128.., columns 128..255
  weight.bytes()[7 * 300 + 299] = 0x7f;
  weight.bytes()[9 * 300] = 0xff;
  StepPlan plan;
  plan.logit_rows = {0, 1};
  std::vector<float> residual(2 * 300);
  for (float& value : residual) value = random.Real(1.0f);
  std::vector<float> norm(300, 1.0f);
  std::vector<float> logits[2] = {std::vector<float>(300), std::vector<float>(300)};
  Backend* backends[] = {cpu.get(), reference.get()};
  for (int i = 0; i < 2; ++i) {
    const auto matrix = backends[i]->LoadMatrix(weight.source());
    backends[i]->Head({DType::kF32, 1, 300, norm.data()}, 1e-6f, *matrix, plan,
                      {DType::kF32, 2, 300, residual.data()},
                      {DType::kF32, 2, 150, logits[i].data()});
  }
  for (int row = 0; row < 2; ++row) {
    for (int n = 0; n < 150; ++n) {
      const bool nan = n >= 128 || n == 7 || n == 9;
      EXPECT_EQ(std::isnan(logits[0][row * 150 + n]), nan) << n;
      if (!nan) {
        EXPECT_EQ(logits[0][row * 150 + n], logits[1][row * 150 + n]) << n;
      }
    }
  }
}

TEST(CpuBackend, ANaNRowIsAFaultAndChoosesTheFirstExperts) {
  const auto backend = Cpu(CpuVectors::kAuto, 2);
  Random random(2);
  ToyMatrix router(random, DType::kBF16, 9, 40);
  const auto gate = backend->LoadGate({.experts = 9, .top_k = 3}, router.source(), {});
  std::vector<BF16> rows(2 * 40, BF16{0x3f80});
  rows[40 + 17] = {0x7fc0};
  int32_t experts[6];
  float weights[6];
  uint8_t faults[2];
  backend->ChooseExperts(*gate, {{DType::kBF16, 2, 40, rows.data()},
                                 {DType::kI32, 2, 3, experts},
                                 {DType::kF32, 2, 3, weights},
                                 {DType::kU8, 2, 1, faults}});
  EXPECT_EQ(faults[0], 0);
  EXPECT_EQ(faults[1], 1);
  EXPECT_THAT((std::vector<int>{experts[3], experts[4], experts[5]}),
              testing::ElementsAre(0, 1, 2));
}

TEST(CpuBackend, ALayerTakesAtMostEightParallelRegionsAndSmallOperationsTakeNone) {
  ToyShape shape = SmallToyShape();
  const auto regions_of_step = [](const ToyShape& of, int rows) {
    const ToyModel model(of, 8);
    const auto backend = Cpu(CpuVectors::kAuto, 2);
    ToyRun run(model, *backend, 1, 640);
    const int64_t before = ParallelRegions(*backend);
    run.Step({{0, rows}});
    return ParallelRegions(*backend) - before;
  };
  shape.vocab = 90;
  shape.gate.top_k = 1;
  EXPECT_EQ(regions_of_step(shape, 1), 0);
  shape.attention.hidden = 384;
  shape.attention.q_rank = 160;
  shape.attention.heads = 12;
  shape.attention.nope_dim = 64;
  shape.attention.v_dim = 64;
  shape.attention.kv_rank = 80;
  shape.intermediate = 256;
  for (const int rows : {1, 8, 600}) {
    const int64_t regions = regions_of_step(shape, rows);
    EXPECT_GE(regions, 6) << rows;
    EXPECT_LE(regions, 2 * 8 + 1) << rows;
  }
}

TEST(CpuBackend, NamesItsProfileAsTheReferenceDoes) {
  for (const KvType kv_type : {KvType::kBF16, KvType::kFP8}) {
    EXPECT_EQ(Cpu(CpuVectors::kAvx2, 1, Quantization::kNone, kv_type)->profile(),
              MakeReferenceBackend({.kv_type = kv_type})->profile());
  }
}

TEST(ReferenceBackend, RoundedAndUnroundedAgreeClosely) {
  for (const int variant : {0, 1, 2, 3}) {
    const ToyModel model(Variant(variant), 11);
    const auto exact = MakeReferenceBackend({.round_to_bf16 = false});
    const auto rounded = MakeReferenceBackend({});
    ToyRun a(model, *exact, 1, 64);
    ToyRun b(model, *rounded, 1, 64);
    a.Step({{0, 9}});
    b.Step({{0, 9}});
    EXPECT_LT(Distance(a, b), 0.1) << variant;
    EXPECT_GT(Distance(a, b), 1e-5) << variant;
  }
}

TEST(ReferenceBackend, UnroundedRowsDoNotDependOnChunking) {
  const ToyModel model(SmallToyShape(), 12);
  const auto backend = MakeReferenceBackend({.round_to_bf16 = false});
  EXPECT_EQ(RunAll(model, *backend, {{{0, 3}}, {{0, 1}}, {{0, 8}}}),
            RunAll(model, *backend, {{{0, 12}}}));
}

}  // namespace
}  // namespace epic::kernels
