#include "model/rope.h"

#include <cmath>

#include "gtest/gtest.h"

namespace epic::model {
namespace {

ModelConfig Config(double theta, double factor, double beta_fast, double mscale) {
  ModelConfig config;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.rope_theta = theta;
  if (factor > 1) {
    config.yarn = YarnConfig{.factor = factor,
                             .original_max_position = 4096,
                             .beta_fast = beta_fast,
                             .beta_slow = 1,
                             .mscale = mscale,
                             .mscale_all_dim = mscale};
  }
  return config;
}

TEST(RopeTest, SoftmaxScalesAreThoseOfThePublishedModels) {
  EXPECT_NEAR(SoftmaxScale(Config(1e4, 40, 32, 0.707)), 0.1147214, 1e-7);  // V2-Lite
  EXPECT_NEAR(SoftmaxScale(Config(1e4, 40, 32, 1)), 0.1352338, 1e-7);      // V3
  EXPECT_NEAR(SoftmaxScale(Config(5e4, 32, 1, 1)), 0.1308608, 1e-7);       // Kimi-K2
  EXPECT_NEAR(SoftmaxScale(Config(5e4, 1, 1, 1)), 0.0721688, 1e-7);        // Moonlight
}

TEST(RopeTest, PlainFrequenciesArePowersOfTheta) {
  const kernels::Rope rope = MakeRope(Config(5e4, 1, 1, 1));
  ASSERT_EQ(rope.inverse_frequency.size(), 32);
  for (int i = 0; i < 32; ++i) {
    EXPECT_NEAR(rope.inverse_frequency[i] / std::pow(5e4, -2.0 * i / 64), 1, 1e-14);
  }
  EXPECT_EQ(rope.magnitude, 1);
}

TEST(RopeTest, YarnBlendsBetweenItsTwoDimensions) {
  const kernels::Rope rope = MakeRope(Config(1e4, 40, 32, 1));
  const auto plain = [](int i) { return std::pow(1e4, -2.0 * i / 64); };
  EXPECT_NEAR(rope.inverse_frequency[10] / plain(10), 1, 1e-14);
  EXPECT_LT(rope.inverse_frequency[11], plain(11) * 0.999);
  EXPECT_GT(rope.inverse_frequency[22], plain(22) / 40 * 1.001);
  EXPECT_NEAR(rope.inverse_frequency[23] / plain(23) * 40, 1, 1e-14);
  EXPECT_EQ(rope.magnitude, 1);
}

TEST(RopeTest, KimisRampIsAStep) {
  const kernels::Rope rope = MakeRope(Config(5e4, 32, 1, 1));
  const auto plain = [](int i) { return std::pow(5e4, -2.0 * i / 64); };
  EXPECT_NEAR(rope.inverse_frequency[19] / plain(19), 1, 1e-14);
  EXPECT_NEAR(rope.inverse_frequency[20] / plain(20) * 32, 1, 1e-14);
}

TEST(RopeTest, MagnitudeFollowsTheMScales) {
  ModelConfig config = Config(1e4, 40, 32, 1);
  config.yarn->mscale_all_dim = 0;
  EXPECT_NEAR(MakeRope(config).magnitude, 1.368888, 1e-6);
  EXPECT_NEAR(SoftmaxScale(config), 0.0721688, 1e-7);
  config.yarn->attention_factor = 1.25;
  EXPECT_EQ(MakeRope(config).magnitude, 1.25);
}

}  // namespace
}  // namespace epic::model
