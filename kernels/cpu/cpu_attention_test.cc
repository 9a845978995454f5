// Attention of every family: pages, splits, tiles and broken rows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/testing/test_backends.h"
#include "kernels/reference/reference_backend.h"
#include "kernels/testing/toy_model.h"

namespace epic::kernels {
namespace {

// Heads so few that rows share tiles, and so many that they do not; records whose width a tile
// divides, and others.
std::vector<ToyShape> ShapesOfAttention() {
  std::vector<ToyShape> shapes(3, SmallToyShape());
  shapes[1].attention.kv_rank = 96;
  shapes[1].attention.rope_dim = 32;
  shapes[2].attention.heads = 21;
  shapes[2].attention.nope_dim = shapes[2].attention.v_dim = 3;
  return shapes;
}

const Schedule kLong = {{{0, 63}}, {{0, 1}},         {{0, 1}}, {{0, 446}, {1, 4}},
                        {{0, 1}},  {{0, 1}, {1, 1}}, {{0, 3}}, {{0, 100}}};

TEST(CpuAttention, FamiliesThatAttendByProductsCrossPagesAndSplits) {
  const bool avx512_bf16 = DetectCpuFeatures().avx512_bf16;
  const std::vector<ToyShape> shapes = ShapesOfAttention();
  for (size_t i = 0; i < shapes.size(); ++i) {
    const ToyModel model(shapes[i], 3);
    for (const KvType kv_type : {KvType::kBF16, KvType::kFP8}) {
      if (kv_type == KvType::kFP8 && i > 0) continue;  // the same code, and time
      const Logits whole =
          RunAll(model, *EmulatedAmx(1, Quantization::kNone, kv_type), {{{0, 616}}});
      const Logits cut = RunAll(model, *EmulatedAmx(3, Quantization::kNone, kv_type), kLong);
      for (const auto& [key, bits] : whole) EXPECT_EQ(cut.at(key), bits) << key.second;
      if (!avx512_bf16) continue;
      const auto reference = MakeReferenceBackend({.avx512_bf16 = true, .kv_type = kv_type});
      const Logits expected = RunAll(model, *reference, kLong);
      EXPECT_EQ(RunAll(model, *Avx512Bf16(3, Quantization::kNone, kv_type), kLong), expected);
      EXPECT_EQ(
          RunAll(model, *Avx512Bf16(1, Quantization::kNone, kv_type), {{{0, 616}}}).at({0, 615}),
          expected.at({0, 615}));
    }
  }
}

TEST(CpuAttention, AttentionByProductsHasTheSameBitsOnEveryVectorWidth) {
  for (const ToyShape& shape : ShapesOfAttention()) {
    const ToyModel model(shape, 9);
    for (const KvType kv_type : {KvType::kBF16, KvType::kFP8}) {
      std::vector<Logits> found;
      for (const CpuVectors vectors : VectorsOfThisCpu()) {
        const auto backend = EmulatedAmx(2, Quantization::kNone, kv_type, vectors);
        found.push_back(RunAll(model, *backend, {{{0, 130}, {1, 9}}, {{0, 1}, {1, 1}}}));
      }
      for (const Logits& logits : found) EXPECT_EQ(logits, found[0]);
    }
  }
}

TEST(CpuAttention, CrossesThePagesAndSplitsOfALongSequence) {
  const ToyModel model(SmallToyShape(), 3);
  const Schedule& schedule = kLong;
  for (const KvType kv_type : {KvType::kBF16, KvType::kFP8}) {
    const Logits expected = Reference(model, schedule, kv_type);
    for (const CpuVectors vectors : VectorsOfThisCpu()) {
      for (const int threads : {1, 3}) {
        const auto backend = Cpu(vectors, threads, Quantization::kNone, kv_type);
        EXPECT_EQ(RunAll(model, *backend, schedule), expected) << backend->description();
      }
    }
  }
  const Logits expected = Reference(model, schedule);
  const auto backend = Cpu(CpuVectors::kAuto, 2);
  const Logits whole = RunAll(model, *backend, {{{0, 616}}});
  for (const int position : {62, 63, 64, 510, 511, 512, 513, 615}) {
    EXPECT_EQ(whole.at({0, position}), expected.at({0, position})) << position;
  }
}

TEST(CpuAttention, ARowOfNaNsDoesNotReachEarlierRowsOrOtherSequencesOfItsChunk) {
  std::vector<std::unique_ptr<Backend>> backends;
  for (const KvType kv_type : {KvType::kBF16, KvType::kFP8}) {
    for (const CpuVectors vectors : VectorsOfThisCpu()) {
      backends.push_back(Cpu(vectors, 2, Quantization::kNone, kv_type));
    }
    backends.push_back(EmulatedAmx(2, Quantization::kNone, kv_type));
    if (DetectCpuFeatures().avx512_bf16) {
      backends.push_back(Avx512Bf16(2, Quantization::kNone, kv_type));
    }
  }
  for (const auto& backend : backends) {
    ToyModel model(SmallToyShape(), 4);
    const Schedule schedule = {{{0, 20}, {1, 20}}};
    const Logits sound = RunAll(model, *backend, schedule);
    model.BreakToken(model.Token(0, 5));
    const Logits broken = RunAll(model, *backend, schedule);
    for (int i = 0; i < 20; ++i) {
      EXPECT_EQ(broken.at({0, i}) == sound.at({0, i}), i < 5) << i << ", " << backend->profile();
      EXPECT_EQ(broken.at({1, i}), sound.at({1, i})) << i;
    }
    EXPECT_THAT(broken.at({0, 5}), testing::Each(kNaN));
    EXPECT_THAT(broken.at({0, 19}), testing::Each(kNaN));
  }
}

}  // namespace
}  // namespace epic::kernels
