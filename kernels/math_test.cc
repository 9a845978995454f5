#include "kernels/math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/flush_denormals.h"

namespace epic::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

double UlpsApart(float value, double exact) {
  const auto nearest = static_cast<float>(exact);
  const double ulp = std::nextafter(std::fabs(nearest), kInfinity) - std::fabs(nearest);
  return std::fabs(value - exact) / ulp;
}

TEST(Exp, IsWithinTwoUlpOfTheExactValue) {
  double worst = 0;
  for (float x = -87.3f; x < 88.3f; x += 0.00037f) {
    worst = std::max(worst, UlpsApart(Exp(x), std::exp(static_cast<double>(x))));
  }
  EXPECT_LE(worst, 2.0);
}

TEST(Exp, HandlesTheEdges) {
  EXPECT_EQ(Exp(0), 1);
  EXPECT_EQ(Exp(-0.0f), 1);
  EXPECT_EQ(Exp(-kInfinity), 0);
  EXPECT_EQ(Exp(-1000), 0);
  EXPECT_EQ(Exp(kInfinity), Exp(89));
  EXPECT_GT(Exp(kInfinity), 2.3e38f);
  EXPECT_TRUE(std::isnan(Exp(kNaN)));
}

TEST(Silu, AgreesWithItsDefinition) {
  for (float x = -80; x < 80; x += 0.0113f) {
    const double exact = x / (1 + std::exp(-static_cast<double>(x)));
    EXPECT_NEAR(Silu(x), exact, std::fabs(exact) * 5e-7) << x;
    EXPECT_NEAR(Sigmoid(x), 1 / (1 + std::exp(-static_cast<double>(x))), 3e-7) << x;
  }
  EXPECT_EQ(Sigmoid(kInfinity), 1);
  const ScopedFlushDenormals flush;
  EXPECT_EQ(Sigmoid(-kInfinity), 0);
}

TEST(ExpDouble, IsWithinAnUlp) {
  for (double x = -700; x < 700; x += 0.0731) {
    EXPECT_NEAR(ExpDouble(x) / std::exp(x), 1, 3e-16) << x;
  }
  EXPECT_EQ(ExpDouble(0), 1);
  EXPECT_EQ(ExpDouble(-800), 0);
  EXPECT_EQ(ExpDouble(800), kInfinity);
}

TEST(LogDouble, IsWithinAnUlp) {
  for (double x = 1e-300; x < 1e300; x *= 1.0371) {
    EXPECT_NEAR(LogDouble(x), std::log(x), std::fabs(std::log(x)) * 3e-16) << x;
  }
  for (double x = 0.5; x < 2; x += 0.000173) {
    EXPECT_NEAR(LogDouble(x), std::log(x), std::fabs(std::log(x)) * 3e-16 + 1e-18) << x;
  }
  EXPECT_EQ(LogDouble(1), 0);
  EXPECT_EQ(LogDouble(0), -kInfinity);
  EXPECT_TRUE(std::isnan(LogDouble(-1)));
  EXPECT_EQ(Log(kInfinity), kInfinity);
}

TEST(SinCosDouble, IsAccurateUpToAMillionRadians) {
  for (double x = 0; x < 1048576; x = x * 1.00091 + 0.00137) {
    const SinCos value = SinCosDouble(x);
    ASSERT_NEAR(value.sin, std::sin(x), 4e-16) << x;
    ASSERT_NEAR(value.cos, std::cos(x), 4e-16) << x;
    ASSERT_NEAR(SinCosDouble(-x).sin, -std::sin(x), 4e-16) << x;
  }
}

TEST(SinCosDouble, HandlesEveryIntegerPosition) {
  for (int position = 0; position < 200000; position += 7) {
    const SinCos value = SinCosDouble(position);
    ASSERT_NEAR(value.sin, std::sin(static_cast<double>(position)), 4e-16) << position;
    ASSERT_NEAR(value.cos, std::cos(static_cast<double>(position)), 4e-16) << position;
  }
}

}  // namespace
}  // namespace epic::kernels
