#include "kernels/cpu/fma_gemm.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/testing/gemm_problem.h"
#include "kernels/math.h"
#include "kernels/number.h"
#include "kernels/quantize.h"

namespace epic::kernels {
namespace {

// One accumulator, K ascending; one scaled partial sum per 128 of K in FP8, per 32 in INT4.
float Expected(const GemmProblem& p, DType dtype, int64_t row, int64_t n) {
  const int64_t k_count = p.source.cols;
  const BF16* a = p.a.data() + row * k_count;
  float sum = 0;
  if (dtype == DType::kI4) {
    std::vector<int8_t> q(k_count);
    std::vector<BF16> scales((k_count + 31) / 32);
    ReadInt4Row(p.source, n, q.data(), scales.data());
    for (int64_t k = 0; k < k_count; k += kInt4Group) {
      float partial = 0;
      for (int64_t i = k; i < std::min(k_count, k + kInt4Group); ++i) {
        partial = Fma(ToFloat(a[i]), static_cast<float>(q[i]), partial);
      }
      sum = Fma(partial, ToFloat(scales[k / kInt4Group]), sum);
    }
    return sum;
  }
  if (dtype != DType::kF8E4M3) {
    std::vector<float> w(k_count);
    ReadSource(p.source, n, 0, k_count, w.data());
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

  void ExpectExact(DType source, DType dtype) {
    Random random(3 + static_cast<int>(dtype));
    for (int trial = 0; trial < 60; ++trial) {
      const GemmProblem p = MakeGemmProblem(random, source);
      for (const int64_t row_step : {p.m, int64_t{random.Integer(1, 9)}}) {
        const std::vector<float> c = Multiply(*family_, p, dtype, random, row_step);
        for (int64_t i = 0; i < p.m; ++i) {
          for (int64_t n = 0; n < p.source.rows; ++n) {
            ASSERT_EQ(c[i * p.source.rows + n], Expected(p, dtype, i, n))
                << "row " << i << " of " << p.m << ", output " << n << " of " << p.source.rows
                << ", K " << p.source.cols << ", rows at once " << row_step;
          }
        }
      }
    }
  }

  std::unique_ptr<FmaGemmFamily> family_;
};

TEST_P(FmaGemm, BF16SumsKAscendingInOneAccumulator) { ExpectExact(DType::kBF16, DType::kBF16); }
TEST_P(FmaGemm, F32SumsKAscendingInOneAccumulator) { ExpectExact(DType::kF32, DType::kF32); }
TEST_P(FmaGemm, E4M3AddsScaledPartialSumsInOrder) { ExpectExact(DType::kF8E4M3, DType::kF8E4M3); }
TEST_P(FmaGemm, Int4AddsScaledPartialSumsInOrder) { ExpectExact(DType::kF32, DType::kI4); }

TEST_P(FmaGemm, DecodesEveryE4M3Code) {
  std::vector<uint8_t> codes(256);
  for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
  const float scales[] = {1, 1};
  GemmProblem p;
  p.source = {DType::kF8E4M3, 256, 1, codes.data(), scales};
  p.a = {BF16{0x3f80}};
  p.m = 1;
  Random random(1);
  for (const int64_t m : {1, 8}) {  // the kernels for few and for many rows
    p.m = m;
    p.a.assign(m, BF16{0x3f80});
    const std::vector<float> c = Multiply(*family_, p, DType::kF8E4M3, random, m);
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
