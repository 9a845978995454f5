// The functions of a row's path, defined once: nothing there calls libm, whose bits differ between
// machines. Vector code repeats these very operations and gives the same bits.
//
// Only +, −, ×, ÷, square root and fused multiply-add are used, each rounded once by IEEE 754, so
// every compiler gives these bits if it does not contract on its own (-ffp-contract=off).
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "kernels/host_device.h"

namespace epic::kernels {

EPIC_HOST_DEVICE inline float Fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// Cephes' expf: e^x = 2^n · e^r with n = round(x / ln 2), |r| ≤ ln 2 / 2, ln 2 in two parts so that
// n · kLn2High is exact, and a polynomial in r. The vector code uses these constants.
namespace exp_constants {
inline constexpr float kLowest = -87.33654f;  // below: 0
inline constexpr float kHighest = 88.37626f;  // above: as at this value, 2.4e38
inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kRounder = 12582912.0f;  // 1.5·2²³: adding it rounds to an integer
inline constexpr float kLn2High = 0.693359375f;
inline constexpr float kLn2Low = -2.12194440e-4f;
inline constexpr float kC0 = 1.9875691500e-4f;
inline constexpr float kC1 = 1.3981999507e-3f;
inline constexpr float kC2 = 8.3334519073e-3f;
inline constexpr float kC3 = 4.1665795894e-2f;
inline constexpr float kC4 = 1.6666665459e-1f;
inline constexpr float kC5 = 5.0000001201e-1f;
}  // namespace exp_constants

// eˣ within 2 ulp; Exp(0) == 1, Exp(−inf) == 0, NaN gives NaN.
EPIC_HOST_DEVICE inline float Exp(float x) {
  using namespace exp_constants;  // NOLINT
  if (x < kLowest) return 0;
  x = kHighest < x ? kHighest : x;
  const float shifted = Fma(x, kLog2E, kRounder);
  const float n = shifted - kRounder;
  float r = Fma(n, -kLn2High, x);
  r = Fma(n, -kLn2Low, r);
  float y = Fma(kC0, r, kC1);
  y = Fma(y, r, kC2);
  y = Fma(y, r, kC3);
  y = Fma(y, r, kC4);
  y = Fma(y, r, kC5);
  y = Fma(y, r * r, r) + 1.0f;
  const uint32_t exponent =
      std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRounder) + 127u;
  return y * std::bit_cast<float>(exponent << 23);
}

EPIC_HOST_DEVICE inline float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }
EPIC_HOST_DEVICE inline float Silu(float x) { return x / (1.0f + Exp(-x)); }

// eˣ and ln x in double, within 1 ulp (the methods and coefficients of fdlibm). For tables and
// sampling. ExpDouble flushes results below 2^-1022 to 0.
EPIC_HOST_DEVICE inline double ExpDouble(double x) {
  if (x != x) return x;
  if (x > 709.78) return std::numeric_limits<double>::infinity();
  if (x < -708.39) return 0;
  const double shifted = __builtin_fma(x, 1.44269504088896338700, 0x1.8p52);
  const double n = shifted - 0x1.8p52;
  const double high = x - n * 6.93147180369123816490e-01;
  const double low = n * 1.90821492927058770002e-10;
  const double r = high - low;
  const double t = r * r;
  const double c =
      r - t * (1.66666666666666019037e-01 +
               t * (-2.77777777770155933842e-03 +
                    t * (6.61375632143793436117e-05 +
                         t * (-1.65339022054652515390e-06 + t * 4.13813679705723846039e-08))));
  const double y = 1.0 - ((low - (r * c) / (2.0 - c)) - high);
  const auto exponent = static_cast<int64_t>(n);
  const int64_t half = exponent / 2;
  return y * std::bit_cast<double>((half + 1023) << 52) *
         std::bit_cast<double>((exponent - half + 1023) << 52);
}

// x must be positive and normal; Log(0) == −inf, a negative x or NaN gives NaN.
EPIC_HOST_DEVICE inline double LogDouble(double x) {
  if (x == 0) return -std::numeric_limits<double>::infinity();
  if (!(x > 0)) return std::numeric_limits<double>::quiet_NaN();
  if (x == std::numeric_limits<double>::infinity()) return x;
  uint64_t bits = std::bit_cast<uint64_t>(x);
  bits += 0x3ff0000000000000u - 0x3fe6a09e00000000u;  // bring the fraction to [√½, √2)
  const int64_t k = static_cast<int64_t>(bits >> 52) - 1023;
  bits = (bits & 0xfffffffffffffu) + 0x3fe6a09e00000000u;
  const double f = std::bit_cast<double>(bits) - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  const double w = z * z;
  const double even = w * (3.999999999940941908e-01 +
                           w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
  const double odd = z * (6.666666666666735130e-01 +
                          w * (2.857142874366239149e-01 +
                               w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  const double half_square = 0.5 * f * f;
  const auto n = static_cast<double>(k);
  return n * 6.93147180369123816490e-01 -
         ((half_square - (s * (half_square + even + odd) + n * 1.90821492927058770002e-10)) - f);
}

EPIC_HOST_DEVICE inline float Log(float x) { return static_cast<float>(LogDouble(x)); }

struct SinCos {
  double sin;
  double cos;
};

// For |x| up to 2²⁰, absolute error below 3e-16.
EPIC_HOST_DEVICE inline SinCos SinCosDouble(double x) {
  const double shifted = __builtin_fma(x, 6.36619772367581382433e-01, 0x1.8p52);
  const double n = shifted - 0x1.8p52;
  double r = x - n * 1.57079632673412561417e+00;  // π/2 in three parts of 33 bits
  r = r - n * 6.07710050630396597660e-11;
  r = r - n * 2.02226624879595063154e-21;
  const double z = r * r;
  const double sin =
      r + r * z *
              (-1.66666666666666324348e-01 +
               z * (8.33333333332248946124e-03 +
                    z * (-1.98412698298579493134e-04 +
                         z * (2.75573137070700676789e-06 + z * (-2.50507602534068634195e-08 +
                                                                z * 1.58969099521155010221e-10)))));
  const double cos =
      1.0 -
      (0.5 * z -
       z * z *
           (4.16666666666666019037e-02 +
            z * (-1.38888888888741095749e-03 +
                 z * (2.48015872894767294178e-05 +
                      z * (-2.75573143513906633035e-07 +
                           z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11))))));
  switch (static_cast<int64_t>(n) & 3) {
    case 0:
      return {sin, cos};
    case 1:
      return {cos, -sin};
    case 2:
      return {-sin, -cos};
    default:
      return {-cos, sin};
  }
}

}  // namespace epic::kernels
