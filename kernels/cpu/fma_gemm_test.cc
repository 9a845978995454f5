#include "kernels/cpu/fma_gemm.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/huge_memory.h"
#include "kernels/math.h"
#include "kernels/number.h"
#include "kernels/quantize.h"
#include "kernels/testing/random.h"

namespace epic::kernels {
namespace {

struct Problem {
  SourceMatrix source;
  std::vector<uint8_t> bytes;
  std::vector<float> scales;
  std::vector<BF16> a;
  int64_t m;
};

Problem MakeProblem(Random& random, DType dtype) {
  Problem p;
  p.m = random.Integer(1, 70);
  const int64_t n = random.Integer(1, 180);
  const int64_t k = random.Integer(1, 300);
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

// One accumulator, K ascending, one scaled partial sum per 128 of K.
float Expected(const Problem& p, int64_t row, int64_t n) {
  const int64_t k_count = p.source.cols;
  std::vector<float> w(k_count);
  ReadSource(p.source, n, 0, k_count, w.data());
  const BF16* a = p.a.data() + row * k_count;
  float sum = 0;
  if (p.source.dtype != DType::kF8E4M3) {
    for (int64_t k = 0; k < k_count; ++k) sum = Fma(ToFloat(a[k]), w[k], sum);
    return sum;
  }
  for (int64_t k = 0; k < k_count; k += kScaleBlock) {
    float partial = 0;
    for (int64_t i = k; i < std::min(k_count, k + kScaleBlock); ++i) {
      partial = Fma(ToFloat(a[i]), E4M3ToFloat(p.bytes[n * k_count + i]), partial);
    }
    sum = Fma(partial, SourceScale(p.source, n, k), sum);
  }
  return sum;
}

class FmaGemm : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam() && !DetectCpuFeatures().avx512) GTEST_SKIP() << "no AVX-512 here";
    family_ = std::make_unique<FmaGemmFamily>(GetParam() ? Avx512VectorOps() : Avx2VectorOps());
  }

  // Multiplies in column ranges cut at random panels and rows cut at `row_step`.
  std::vector<float> Multiply(const Problem& p, Random& random, bool f32, int64_t row_step) {
    const int64_t n = p.source.rows;
    const int64_t k = p.source.cols;
    const DType dtype = f32 ? DType::kF32 : PackedDType(p.source.dtype, k, Quantization::kNone);
    HugeMemory packed(PackedBytes(*family_, n, k, dtype));
    const int64_t panels = PanelCount(*family_, n);
    family_->Pack(p.source, dtype, 0, panels, packed.data());
    HugeMemory scratch(family_->scratch_bytes(k));
    std::vector<float> c(p.m * n, -7.0f);
    int64_t panel = 0;
    while (panel < panels) {
      const int64_t end = random.Integer(static_cast<int>(panel) + 1, static_cast<int>(panels));
      for (int64_t row = 0; row < p.m; row += row_step) {
        family_->Gemm({.a = p.a.data() + row * k,
                       .a_stride = k,
                       .m = std::min(row_step, p.m - row),
                       .weight = {packed.data(), n, k, dtype},
                       .n_begin = panel * kFmaPanel,
                       .n_end = std::min(n, end * kFmaPanel),
                       .c = c.data() + row * n + panel * kFmaPanel,
                       .c_stride = n,
                       .scratch = scratch.data()});
      }
      panel = end;
    }
    return c;
  }

  void ExpectExact(DType dtype, bool f32) {
    Random random(3 + static_cast<int>(dtype));
    for (int trial = 0; trial < 60; ++trial) {
      const Problem p = MakeProblem(random, dtype);
      for (const int64_t row_step : {p.m, int64_t{random.Integer(1, 9)}}) {
        const std::vector<float> c = Multiply(p, random, f32, row_step);
        for (int64_t i = 0; i < p.m; ++i) {
          for (int64_t n = 0; n < p.source.rows; ++n) {
            ASSERT_EQ(c[i * p.source.rows + n], Expected(p, i, n))
                << "row " << i << " of " << p.m << ", output " << n << " of " << p.source.rows
                << ", K " << p.source.cols << ", rows at once " << row_step;
          }
        }
      }
    }
  }

  std::unique_ptr<FmaGemmFamily> family_;
};

TEST_P(FmaGemm, BF16SumsKAscendingInOneAccumulator) { ExpectExact(DType::kBF16, false); }
TEST_P(FmaGemm, F32SumsKAscendingInOneAccumulator) { ExpectExact(DType::kF32, true); }
TEST_P(FmaGemm, E4M3AddsScaledPartialSumsInOrder) { ExpectExact(DType::kF8E4M3, false); }

TEST_P(FmaGemm, DecodesEveryE4M3Code) {
  std::vector<uint8_t> codes(256);
  for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
  const float scales[] = {1, 1};
  Problem p;
  p.source = {DType::kF8E4M3, 256, 1, codes.data(), scales};
  p.a = {BF16{0x3f80}};
  p.m = 1;
  Random random(1);
  for (const int64_t m : {1, 8}) {  // the kernels for few and for many rows
    p.m = m;
    p.a.assign(m, BF16{0x3f80});
    const std::vector<float> c = Multiply(p, random, false, m);
    for (int i = 0; i < 256; ++i) {
      if (IsE4M3NaN(codes[i])) {
        EXPECT_TRUE(std::isnan(c[i])) << i;
      } else {
        EXPECT_EQ(c[i], E4M3ToFloat(codes[i])) << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Vectors, FmaGemm, testing::Bool(),
                         [](const auto& info) { return info.param ? "Avx512" : "Avx2"; });

}  // namespace
}  // namespace epic::kernels
