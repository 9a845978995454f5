#include "kernels/cpu/int8_gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cpu/amx_probe.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/testing/gemm_problem.h"
#include "kernels/flush_denormals.h"
#include "kernels/quantize.h"

namespace epic::kernels {
namespace {

struct Tier {
  const char* name;
  Int8GemmFamily family;
  std::string failure;
};

void PrintTo(const Tier& tier, std::ostream* out) { *out << tier.name; }

std::vector<Tier> Tiers() {
  const CpuFeatures features = DetectCpuFeatures();
  return {
      {"Avx2", Int8GemmFamily(Avx2Int8Kernels()), features.avx2 ? "" : "no AVX2 here"},
      {"Vnni", Int8GemmFamily(VnniInt8Kernels()),
       features.avx512_vnni ? "" : "no AVX-512 VNNI here"},
      {"EmulatedAmx", Int8GemmFamily(EmulatedAmxKernels()), features.avx2 ? "" : "no AVX2 here"},
      {"EmulatedAmxTiles", Int8GemmFamily(EmulatedTileAmxKernels()),
       features.avx512_vbmi ? "" : "no AVX-512 VBMI here"},
      {"RealAmx", Int8GemmFamily(RealAmxKernels()), AmxFailure()}};
}

std::vector<float> Expected(const GemmProblem& p) {
  const int64_t k_count = p.source.cols;
  std::vector<float> c;
  std::vector<float> row(k_count);
  std::vector<int8_t> a(k_count);
  std::vector<int8_t> w(k_count);
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t k = 0; k < k_count; ++k) row[k] = ToFloat(p.a[i * k_count + k]);
    const float row_scale = QuantiseInt8(row.data(), k_count, a.data());
    for (int64_t n = 0; n < p.source.rows; ++n) {
      const float scale = ReadInt8Row(p.source, n, w.data());
      int64_t sum = 0;
      for (int64_t k = 0; k < k_count; ++k) sum += a[k] * w[k];
      c.push_back(static_cast<float>(sum) * scale * row_scale);
    }
  }
  return c;
}

class Int8Gemm : public testing::TestWithParam<Tier> {
 protected:
  void SetUp() override {
    if (!GetParam().failure.empty()) GTEST_SKIP() << GetParam().failure;
  }
  std::vector<float> Run(const GemmProblem& p, Random& random, int64_t row_step) {
    return Multiply(GetParam().family, p, DType::kI8, random, row_step);
  }
};

TEST_P(Int8Gemm, SumsAreExactAndScaledInOrder) {
  Random random(8);
  for (int trial = 0; trial < 60; ++trial) {
    const GemmProblem p = MakeGemmProblem(random, DType::kF32, {.k_max = trial < 50 ? 300 : 2500});
    const std::vector<float> expected = Expected(p);
    for (const int64_t row_step : {p.m, int64_t{random.Integer(1, 40)}}) {
      ASSERT_EQ(Run(p, random, row_step), expected)
          << p.m << "×" << p.source.cols << "×" << p.source.rows << ", rows at once " << row_step;
    }
  }
}

TEST_P(Int8Gemm, NothingSaturatesAtTheLargestValues) {
  Random random(9);
  for (const int weight : {127, -127, -128}) {
    GemmProblem p = MakeGemmProblem(random, DType::kF32, {.m = 20, .n = 40, .k_max = 400});
    const int64_t k = p.source.cols;
    p.bytes.assign(40 * k, static_cast<uint8_t>(weight));
    p.scales.assign(40, 1.0f);
    p.source = {.dtype = DType::kI8,
                .rows = 40,
                .cols = k,
                .data = p.bytes.data(),
                .scales = p.scales.data()};
    for (int64_t i = 0; i < p.m * k; ++i) p.a[i] = ToBF16(i / k % 2 == 0 ? 127.0f : -127.0f);
    const std::vector<float> c = Run(p, random, p.m);
    for (int64_t i = 0; i < p.m * 40; ++i) {
      const int sign = i / 40 % 2 == 0 ? 1 : -1;
      ASSERT_EQ(c[i], static_cast<float>(sign * 127 * weight * k)) << weight << ", " << i;
    }
  }
}

TEST_P(Int8Gemm, NaNsStayInTheirRowAndOutput) {
  Random random(10);
  GemmProblem p = MakeGemmProblem(random, DType::kF32, {.m = 19, .n = 33, .k_max = 100});
  const int64_t k = p.source.cols;
  const std::vector<float> sound = Run(p, random, p.m);
  p.a[7 * k] = {0x7f80};
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(p.bytes.data() + 4 * 5 * k, &nan, 4);
  const std::vector<float> broken = Run(p, random, p.m);
  for (int64_t i = 0; i < p.m * 33; ++i) {
    if (i / 33 == 7 || i % 33 == 5) {
      EXPECT_TRUE(std::isnan(broken[i])) << i;
    } else {
      EXPECT_EQ(broken[i], sound[i]) << i;
    }
  }
}

TEST(Int8Rows, AreThoseOfThePlainQuantiser) {
  if (!DetectCpuFeatures().avx2) GTEST_SKIP() << "no AVX2 here";
  Random random(11);
  for (int trial = 0; trial < 3000; ++trial) {
    const int64_t k = random.Integer(1, 70);
    std::vector<BF16> row;
    for (int64_t i = 0; i < k; ++i) {
      // All bit patterns but for NaN, of which every tenth row has one.
      const BF16 value = {static_cast<uint16_t>(random.Next())};
      const bool finite = (value.bits & 0x7f80u) != 0x7f80u;
      row.push_back(finite || trial % 10 == 0 ? value : BF16{0});
      if (trial % 2 == 1) row.back().bits = static_cast<uint16_t>(row.back().bits % 0x8100u);
    }
    std::vector<float> wide;
    for (const BF16 value : row) wide.push_back(ToFloat(value));
    std::vector<int8_t> q(k);
    const float scale = QuantiseInt8(wide.data(), k, q.data());
    HugeMemory to(Int8RowBytes(k));
    std::memset(to.data(), 0x55, to.bytes());
    if (trial % 3 == 0) {
      const ScopedFlushDenormals flush;
      QuantiseInt8Row(row.data(), k, to.data());
    } else {
      QuantiseInt8Row(row.data(), k, to.data());
    }
    ASSERT_EQ(std::memcmp(to.data(), q.data(), k), 0) << trial;
    for (int64_t i = k; i < Int8RowOffset(k); ++i) ASSERT_EQ(to.data()[i], std::byte{0});
    Int8Row end;
    std::memcpy(&end, to.data() + Int8RowOffset(k), sizeof(end));
    ASSERT_TRUE(end.scale == scale || (std::isnan(end.scale) && std::isnan(scale))) << trial;
    ASSERT_EQ(end.surplus, 128 * std::accumulate(q.begin(), q.end(), 0)) << trial;
  }
}

INSTANTIATE_TEST_SUITE_P(Tiers, Int8Gemm, testing::ValuesIn(Tiers()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace epic::kernels
