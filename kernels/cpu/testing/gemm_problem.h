// Random products for the tests of GemmFamily.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/huge_memory.h"
#include "kernels/number.h"
#include "kernels/testing/random.h"

namespace epic::kernels {

struct GemmProblem {
  SourceMatrix source;
  std::vector<uint8_t> bytes;
  std::vector<float> scales;
  std::vector<BF16> a;  // [m, source.cols]
  int64_t m = 0;

  GemmProblem() = default;
  GemmProblem(GemmProblem&&) = default;  // views of vectors survive a move, not a copy
};

struct GemmProblemLimits {
  int64_t m = 0;  // 0: random
  int64_t n = 0;  // 0: random
  int k_max = 300;
};

// `dtype`: kF32, kBF16 or kF8E4M3.
inline GemmProblem MakeGemmProblem(Random& random, DType dtype,
                                   const GemmProblemLimits& limits = {}) {
  GemmProblem p;
  p.m = limits.m > 0 ? limits.m : random.Integer(1, 70);
  const int64_t n = limits.n > 0 ? limits.n : random.Integer(1, 180);
  const int64_t k = random.Integer(1, limits.k_max);
  p.source = {.dtype = dtype, .rows = n, .cols = k};
  for (int64_t i = 0; i < n * k; ++i) {
    if (dtype == DType::kF8E4M3) {
      const auto code = static_cast<uint8_t>(random.Next());
      p.bytes.push_back(IsE4M3NaN(code) ? 0x80 : code);
      continue;
    }
    const float value = random.Real(1.0f);
    const auto* from = reinterpret_cast<const uint8_t*>(&value);
    const BF16 rounded = ToBF16(value);
    if (dtype == DType::kBF16) from = reinterpret_cast<const uint8_t*>(&rounded);
    p.bytes.insert(p.bytes.end(), from, from + DTypeBytes(dtype));
  }
  for (int64_t i = 0; i < ((n + 127) / 128) * ((k + 127) / 128); ++i) {
    p.scales.push_back(random.Real(0.01f));
  }
  p.source.data = p.bytes.data();
  p.source.scales = p.scales.data();
  for (int64_t i = 0; i < p.m * k; ++i) p.a.push_back(ToBF16(random.Real(2.0f)));
  return p;
}

// a·weightᵀ with the weight kept as `dtype`, in column ranges cut at random panels and in rows cut
// at `row_step`. What the family must not write is checked to stay.
inline std::vector<float> Multiply(const GemmFamily& family, const GemmProblem& p, DType dtype,
                                   Random& random, int64_t row_step) {
  const int64_t n = p.source.rows;
  const int64_t k = p.source.cols;
  const int64_t width = family.panel_columns();
  HugeMemory packed(PackedBytes(family, n, k, dtype));
  const int64_t panels = PanelCount(family, n);
  const int64_t cut = panels / 2;
  family.Pack(p.source, dtype, cut, panels, packed.data());
  family.Pack(p.source, dtype, 0, cut, packed.data());
  const int64_t row_bytes = family.row_bytes(k, dtype);
  HugeMemory rows(std::max<int64_t>(64, p.m * row_bytes));
  for (int64_t i = 0; i < p.m && row_bytes > 0; ++i) {
    family.PrepareRow(p.a.data() + i * k, k, dtype, rows.data() + i * row_bytes);
  }
  HugeMemory scratch(std::max<int64_t>(64, family.scratch_bytes(k)));
  std::vector<float> c(p.m * n, -7.0f);
  for (int64_t panel = 0; panel < panels;) {
    const int64_t end = random.Integer(static_cast<int>(panel) + 1, static_cast<int>(panels));
    for (int64_t row = 0; row < p.m; row += row_step) {
      family.Gemm({.a = p.a.data() + row * k,
                   .a_stride = k,
                   .prepared = rows.data() + row * row_bytes,
                   .prepared_stride = row_bytes,
                   .m = std::min(row_step, p.m - row),
                   .weight = {packed.data(), n, k, dtype},
                   .n_begin = panel * width,
                   .n_end = std::min(n, end * width),
                   .c = c.data() + row * n + panel * width,
                   .c_stride = n,
                   .scratch = scratch.data()});
    }
    panel = end;
  }
  return c;
}

}  // namespace epic::kernels
