#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"
#include "kernels/math.h"

namespace epic::model {
namespace {

double MScale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * kernels::LogDouble(factor) + 1.0;
}

double Magnitude(const YarnConfig& yarn) {
  // YaRN (Peng and others, 2023), with DeepSeek's two mscales: their quotient scales the rotary
  // part, and the second one the softmax (SoftmaxScale).
  if (yarn.attention_factor != 0) return yarn.attention_factor;
  if (yarn.mscale != 0 && yarn.mscale_all_dim != 0) {
    return MScale(yarn.factor, yarn.mscale) / MScale(yarn.factor, yarn.mscale_all_dim);
  }
  return MScale(yarn.factor, 1);
}

// The dimension whose pair turns `turns` times over the original context.
double TurningDimension(const ModelConfig& config, double turns) {
  const double length = config.yarn->original_max_position / (turns * 2 * std::numbers::pi);
  return config.qk_rope_head_dim * kernels::LogDouble(length) /
         (2 * kernels::LogDouble(config.rope_theta));
}

}  // namespace

kernels::Rope MakeRope(const ModelConfig& config) {
  kernels::Rope rope;
  // Our own exponential and logarithm: libm's differ between systems, and these numbers reach rows.
  const int dims = config.qk_rope_head_dim;
  CHECK(dims > 0 && dims % 2 == 0) << " rotary dimensions " << dims;
  const double log_theta = kernels::LogDouble(config.rope_theta);
  for (int i = 0; i < dims / 2; ++i) {
    rope.inverse_frequency.push_back(kernels::ExpDouble(-2.0 * i / dims * log_theta));
  }
  if (!config.yarn) return rope;
  // Fast dimensions keep their frequency, slow ones are stretched by `factor`, and a ramp joins
  // the two.
  const double low = std::max(std::floor(TurningDimension(config, config.yarn->beta_fast)), 0.0);
  double high = std::min(std::ceil(TurningDimension(config, config.yarn->beta_slow)), dims - 1.0);
  // As the published code avoids a division by zero.
  if (low == high) high += 0.001;
  for (int i = 0; i < dims / 2; ++i) {
    const double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
    double& frequency = rope.inverse_frequency[i];
    frequency = frequency * (1 - ramp) + frequency / config.yarn->factor * ramp;
  }
  rope.magnitude = Magnitude(*config.yarn);
  return rope;
}

double SoftmaxScale(const ModelConfig& config) {
  const double scale = 1 / std::sqrt(static_cast<double>(config.qk_head_dim()));
  if (!config.yarn || config.yarn->mscale_all_dim == 0) return scale;
  const double mscale = MScale(config.yarn->factor, config.yarn->mscale_all_dim);
  return scale * mscale * mscale;
}

}  // namespace epic::model
