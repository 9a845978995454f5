// Operations on rows over the lanes of the including file; the exponential repeats math.h.
#pragma once

#include "kernels/cpu/vector_ops.h"
#include "kernels/math.h"

namespace epic::kernels {
namespace {

inline F16 ExpLanes(F16 x) {
  using namespace exp_constants;  // NOLINT
  // Each line is one of math.h's Exp, so the bits are the same. The cases are selected at the end,
  // as lanes cannot branch.
  const M16 low = Less(x, Set1(kLowest));
  // min gives its second operand where one is NaN, so a NaN stays.
  x = Smaller(Set1(kHighest), x);
  const F16 shifted = Fma(x, Set1(kLog2E), Set1(kRounder));
  const F16 n = shifted - Set1(kRounder);
  F16 r = Fma(n, Set1(-kLn2High), x);
  r = Fma(n, Set1(-kLn2Low), r);
  F16 y = Fma(Set1(kC0), r, Set1(kC1));
  y = Fma(y, r, Set1(kC2));
  y = Fma(y, r, Set1(kC3));
  y = Fma(y, r, Set1(kC4));
  y = Fma(y, r, Set1(kC5));
  y = Fma(y, r * r, r) + Set1(1.0f);
  return Select(low, Zero(), y * PowerOfTwo(shifted, kRounder));
}

// Calls body(index, lanes) over [0, count) in steps of 16.
template <class Body>
inline void ForLanes(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) body(i, 16);
  if (i < count) body(i, static_cast<int>(count - i));
}

inline F16 LoadSome(const float* p, int lanes) { return lanes == 16 ? Load(p) : LoadN(p, lanes); }

inline void StoreBF16Some(BF16* p, F16 x, int lanes) {
  if (lanes == 16) return StoreBF16(p, x);
  // A row's end may be the end of its memory, so values go by way of the stack.
  BF16 all[16];
  StoreBF16(all, x);
  for (int i = 0; i < lanes; ++i) p[i] = all[i];
}

inline F16 LoadBF16Some(const BF16* p, int lanes) {
  if (lanes == 16) return LoadBF16(p);
  BF16 all[16] = {};
  for (int i = 0; i < lanes; ++i) all[i] = p[i];
  return LoadBF16(all);
}

// 16 chains are added by halves: this is the order of all norms of the CPU, which the oracle
// repeats (reference/rows.cc). Lanes past the end add 0.
float SumOfSquares(const float* x, int64_t count) {
  F16 sum = Zero();
  ForLanes(count, [&](int64_t i, int lanes) {
    const F16 value = LoadSome(x + i, lanes);
    sum = Fma(value, value, sum);
  });
  float lane[16];
  Store(lane, sum);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

void RmsNorm(const float* x, const float* weight, int64_t count, float eps, BF16* out) {
  const float mean = SumOfSquares(x, count) / static_cast<float>(count);
  // The square root is an instruction, so nothing calls libm here (kernels/math.h).
  const float factor = 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + eps)));
  ForLanes(count, [&](int64_t i, int lanes) {
    const F16 y = LoadSome(x + i, lanes) * Set1(factor) * LoadSome(weight + i, lanes);
    StoreBF16Some(out + i, y, lanes);
  });
}

void ToBF16Row(const float* x, int64_t count, BF16* out) {
  ForLanes(count,
           [&](int64_t i, int lanes) { StoreBF16Some(out + i, LoadSome(x + i, lanes), lanes); });
}

void SiluMultiply(const float* gate, const float* up, int64_t count, BF16* out) {
  ForLanes(count, [&](int64_t i, int lanes) {
    const F16 g = LoadSome(gate + i, lanes);
    // An estimate of the reciprocal would have other bits on other CPUs, so this divides.
    const F16 silu = g / (Set1(1.0f) + ExpLanes(Negative(g)));
    StoreBF16Some(out + i, silu * LoadSome(up + i, lanes), lanes);
  });
}

void Add(const float* x, int64_t count, float* into) {
  ForLanes(count, [&](int64_t i, int lanes) {
    // The residual takes the whole sum at once, with one rounding.
    StoreN(into + i, LoadSome(into + i, lanes) + LoadSome(x + i, lanes), lanes);
  });
}

void Widen(const BF16* x, int64_t count, float* out) {
  ForLanes(count,
           [&](int64_t i, int lanes) { StoreN(out + i, LoadBF16Some(x + i, lanes), lanes); });
}

void AddScaled(float factor, const BF16* x, int64_t count, float* into) {
  ForLanes(count, [&](int64_t i, int lanes) {
    const F16 sum = Fma(Set1(factor), LoadBF16Some(x + i, lanes), LoadSome(into + i, lanes));
    StoreN(into + i, sum, lanes);
  });
}

}  // namespace
}  // namespace epic::kernels
