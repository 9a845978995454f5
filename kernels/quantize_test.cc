#include "kernels/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace epic::kernels {
namespace {

using testing::ElementsAre;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(Quantize, Int8RoundsToNearestEvenOfTheLargest) {
  const float x[] = {127, -63.5f, 0.5f, 1.5f, -2.5f, 0};
  int8_t q[6];
  EXPECT_EQ(QuantiseInt8(x, 6, q), 1.0f);
  EXPECT_THAT(q, ElementsAre(127, -64, 0, 2, -2, 0));
}

TEST(Quantize, Int8OfNoNumberIsNaNAndOfNothingZero) {
  int8_t q[2];
  for (const float bad : {kNaN, -kNaN, kInfinity, -kInfinity}) {
    const float x[] = {1, bad};
    EXPECT_TRUE(std::isnan(QuantiseInt8(x, 2, q))) << bad;
    EXPECT_THAT(q, ElementsAre(0, 0));
  }
  for (const float tiny : {0.0f, -0.0f, 1e-40f, 0x1p-101f}) {
    const float x[] = {tiny, -tiny};
    EXPECT_EQ(QuantiseInt8(x, 2, q), 0) << tiny;
    EXPECT_THAT(q, ElementsAre(0, 0));
  }
  const float huge[] = {std::numeric_limits<float>::max(), -0x1p-99f};
  EXPECT_TRUE(std::isfinite(QuantiseInt8(huge, 2, q)));
  EXPECT_THAT(q, ElementsAre(127, 0));
}

TEST(Quantize, Int4UsesAllSixteenValues) {
  const float x[] = {7.5f, -7.5f, 7.4f, -7.6f * 0.98f, 1, -1, 0.4f, 0};
  int8_t q[8];
  EXPECT_EQ(ToFloat(QuantiseInt4(x, 8, q)), 1.0f);
  EXPECT_THAT(q, ElementsAre(7, -8, 7, -7, 1, -1, 0, 0));
  const float bad[] = {1, kNaN};
  EXPECT_TRUE(std::isnan(ToFloat(QuantiseInt4(bad, 2, q))));
  const float none[] = {0, 0};
  EXPECT_EQ(ToFloat(QuantiseInt4(none, 2, q)), 0);
}

TEST(Quantize, Int4ErrorIsAtMostHalfAStepButForTheTop) {
  for (int i = 1; i < 2000; ++i) {
    std::vector<float> x = {2.0f, static_cast<float>(i) / 1000.0f - 1.0f};
    int8_t q[2];
    const float scale = ToFloat(QuantiseInt4(x.data(), 2, q));
    EXPECT_LE(std::abs(x[1] - static_cast<float>(q[1]) * scale), 0.501f * scale) << x[1];
  }
}

TEST(Quantize, ReadsIntegerSourcesAsTheyAre) {
  // Two rows of 35: five words each; nibble = value + 8.
  std::vector<uint8_t> nibbles(2 * 20, 0x88);
  nibbles[0] = 0xf0;        // row 0: −8, 7
  nibbles[20 + 17] = 0x39;  // row 1: 34 is 1; past the end something else
  const BF16 scales[] = {ToBF16(2), ToBF16(0.5f), ToBF16(1), BF16{0x0001}};
  const SourceMatrix source = {.dtype = DType::kI4,
                               .rows = 2,
                               .cols = 35,
                               .data = nibbles.data(),
                               .scales = scales,
                               .scales_dtype = DType::kBF16};
  EXPECT_EQ(source.data_bytes(), 40);
  int8_t q[35];
  BF16 read[2];
  ReadInt4Row(source, 0, q, read);
  EXPECT_EQ(q[0], -8);
  EXPECT_EQ(q[1], 7);
  EXPECT_EQ(q[34], 0);
  EXPECT_EQ(ToFloat(read[1]), 0.5f);
  ReadInt4Row(source, 1, q, read);
  EXPECT_EQ(q[34], 1);
  EXPECT_EQ(read[1].bits, 0);  // a denormal scale
  float row[35];
  ReadSource(source, 0, 0, 35, row);
  EXPECT_EQ(row[0], -16);
  EXPECT_EQ(row[1], 14);

  const int8_t bytes[] = {-128, 5, 7, 127};
  const float per_row[] = {0.5f, 3};
  const SourceMatrix eight = {
      .dtype = DType::kI8, .rows = 2, .cols = 2, .data = bytes, .scales = per_row};
  EXPECT_EQ(ReadInt8Row(eight, 1, q), 3);
  EXPECT_EQ(q[1], 127);
  ReadSource(eight, 0, 0, 2, row);
  EXPECT_EQ(row[0], -64);
}

TEST(Quantize, IntegersOfACheckpointStayAsTheyAre) {
  EXPECT_EQ(PackedDType(DType::kI4, 64, Quantization::kInt8), DType::kI4);
  EXPECT_EQ(PackedDType(DType::kI8, 64, Quantization::kInt4), DType::kI8);
  EXPECT_EQ(PackedDType(DType::kF8E4M3, 64, Quantization::kNone), DType::kF8E4M3);
  EXPECT_EQ(PackedDType(DType::kF8E4M3, 64, Quantization::kInt8), DType::kI8);
  EXPECT_EQ(PackedDType(DType::kF32, 64, Quantization::kNone), DType::kBF16);
  EXPECT_EQ(PackedDType(DType::kF32, kInt8InputsMax + 1, Quantization::kInt8), DType::kBF16);
}

TEST(Quantize, Int4WeightsAreRoundedOnceToBF16) {
  EXPECT_EQ(Int4Weight(7, ToBF16(1.0078125f)), RoundToBF16(7 * 1.0078125f));
  EXPECT_EQ(Int4Weight(3, BF16{0x0080}), 3 * std::numeric_limits<float>::min());
  EXPECT_EQ(Int4Weight(0, BF16{0x0080}), 0);
}

}  // namespace
}  // namespace epic::kernels
