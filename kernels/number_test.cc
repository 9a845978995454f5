#include "kernels/number.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

namespace epic::kernels {
namespace {

TEST(E4M3, DecodesAll256CodesByTheirDefinition) {
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15;
    const int mantissa = code & 7;
    const double sign = code & 0x80 ? -1 : 1;
    const double value = exponent == 0 ? sign * std::ldexp(mantissa / 8.0, -6)
                                       : sign * std::ldexp(1 + mantissa / 8.0, exponent - 7);
    const float decoded = E4M3ToFloat(static_cast<uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(decoded)) << code;
    } else {
      EXPECT_EQ(decoded, value) << code;
      EXPECT_EQ(std::signbit(decoded), (code & 0x80) != 0) << code;
    }
  }
  EXPECT_EQ(E4M3ToFloat(0x7e), 448);
  EXPECT_EQ(E4M3ToFloat(0x01), 0.001953125f);
}

TEST(E4M3, EncodesToTheNearestAndHalfWayToEven) {
  for (int code = 0; code < 0x7e; ++code) {
    const float low = E4M3ToFloat(static_cast<uint8_t>(code));
    const float high = E4M3ToFloat(static_cast<uint8_t>(code + 1));
    const float middle = (low + high) / 2;  // exact
    EXPECT_EQ(ToE4M3(low), code);
    EXPECT_EQ(ToE4M3(-low), code | 0x80);
    EXPECT_EQ(ToE4M3(middle), (code + 1) & ~1) << code;
    EXPECT_EQ(ToE4M3(std::nextafter(middle, 0.0f)), code);
    EXPECT_EQ(ToE4M3(std::nextafter(middle, 448.0f)), code + 1);
  }
  EXPECT_EQ(ToE4M3(448), 0x7e);
  EXPECT_EQ(ToE4M3(-1e30f), 0xfe);
  EXPECT_EQ(ToE4M3(std::numeric_limits<float>::infinity()), 0x7e);
  EXPECT_TRUE(IsE4M3NaN(ToE4M3(std::numeric_limits<float>::quiet_NaN())));
}

TEST(BF16Rounding, GoesToNearestEven) {
  EXPECT_EQ(ToBF16(1.0f).bits, 0x3f80);
  EXPECT_EQ(ToBF16(1.00390625f).bits, 0x3f80);  // half way, down to even
  EXPECT_EQ(ToBF16(1.01171875f).bits, 0x3f82);  // half way, up to even
  EXPECT_EQ(ToBF16(1.00390637f).bits, 0x3f81);  // just above half
  EXPECT_EQ(ToBF16(-1.01171875f).bits, 0xbf82);
  EXPECT_EQ(ToBF16(3.4e38f).bits, 0x7f80);  // overflows to infinity
  EXPECT_EQ(ToBF16(std::numeric_limits<float>::infinity()).bits, 0x7f80);
  EXPECT_TRUE(std::isnan(ToFloat(ToBF16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(BF16Rounding, KeepsEveryBF16Value) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const BF16 value{static_cast<uint16_t>(bits)};
    if (std::isnan(ToFloat(value))) continue;
    EXPECT_EQ(ToBF16(ToFloat(value)).bits, bits);
  }
}

TEST(Half, DecodesNormalSubnormalAndSpecialValues) {
  EXPECT_EQ(HalfToFloat(0x3c00), 1.0f);
  EXPECT_EQ(HalfToFloat(0xc000), -2.0f);
  EXPECT_EQ(HalfToFloat(0x7bff), 65504.0f);
  EXPECT_EQ(HalfToFloat(0x0001), std::ldexp(1.0f, -24));
  EXPECT_EQ(HalfToFloat(0x83ff), -std::ldexp(1023.0f, -24));
  EXPECT_EQ(HalfToFloat(0x7c00), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(HalfToFloat(0x7e00)));
}

TEST(ReadSource, MultipliesEachBlockOf128By128ByItsScale) {
  constexpr int64_t kRows = 130;
  constexpr int64_t kCols = 257;
  std::vector<uint8_t> storage(kRows * kCols + 1, 0x38);  // 1.0
  float scales[6] = {1, 2, 3, 4, 5, 6};
  char unaligned[sizeof(scales) + 1];
  std::memcpy(unaligned + 1, scales, sizeof(scales));
  const SourceMatrix source{DType::kF8E4M3, kRows, kCols, storage.data() + 1, unaligned + 1};
  std::vector<float> row(kCols);
  ReadSource(source, 127, 0, kCols, row.data());
  EXPECT_EQ(row[0], 1);
  EXPECT_EQ(row[127], 1);
  EXPECT_EQ(row[128], 2);
  EXPECT_EQ(row[256], 3);
  ReadSource(source, 128, 127, 2, row.data());
  EXPECT_EQ(row[0], 4);
  EXPECT_EQ(row[1], 5);
}

}  // namespace
}  // namespace epic::kernels
