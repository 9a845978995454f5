#include "kernels/cpu/tile_gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/cpu/amx_probe.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/testing/gemm_problem.h"
#include "kernels/flush_denormals.h"
#include "kernels/math.h"
#include "kernels/number.h"
#include "kernels/quantize.h"

namespace epic::kernels {
namespace {

struct Unit {
  const char* name;
  TileGemmFamily family;
  std::string failure;
};

void PrintTo(const Unit& unit, std::ostream* out) { *out << unit.name; }

std::vector<Unit> Units() {
  const CpuFeatures features = DetectCpuFeatures();
  return {
      {"EmulatedAmx", TileGemmFamily(EmulatedAmxKernels()), features.avx2 ? "" : "no AVX2 here"},
      {"EmulatedAmxTiles", TileGemmFamily(EmulatedTileAmxKernels()),
       features.avx512_vbmi ? "" : "no AVX-512 VBMI here"},
      {"RealAmx", TileGemmFamily(RealAmxKernels()), AmxFailure()},
      {"Avx512Bf16", TileGemmFamily(RealAvx512Bf16Kernels()),
       features.avx512_bf16 ? "" : "no AVX-512 BF16 here"}};
}

// Products with inputs [k_begin, k_end) added to `c`, as family avx512-bf16 does.
float AddPairs(const BF16* a, const std::vector<float>& w, int64_t k_begin, int64_t k_end,
               float c) {
  for (int64_t k = k_begin; k < k_end; k += 2) {
    if (k + 1 < k_end) c = Fma(ToFloat(a[k + 1]), w[k + 1], c);
    c = Fma(ToFloat(a[k]), w[k], c);
  }
  return c;
}

// As family amx-bf16 does: tile by tile.
float AddTiles(const BF16* a, const std::vector<float>& w, int64_t k_begin, int64_t k_end,
               float c) {
  for (int64_t tile = k_begin; tile < k_end; tile += 32) {
    float sums[2] = {};
    for (int64_t k = tile; k < std::min(k_end, tile + 32); ++k) {
      sums[k % 2] = Fma(ToFloat(a[k]), w[k], sums[k % 2]);
    }
    c += sums[0] + sums[1];
  }
  return c;
}

float Expected(bool amx, const GemmProblem& p, DType dtype, int64_t row, int64_t n) {
  const auto add = amx ? AddTiles : AddPairs;
  const int64_t k_count = p.source.cols;
  const BF16* a = p.a.data() + row * k_count;
  std::vector<float> w(k_count);
  if (dtype == DType::kI4) {
    std::vector<int8_t> q(k_count);
    std::vector<BF16> scales((k_count + 31) / 32);
    ReadInt4Row(p.source, n, q.data(), scales.data());
    if (!amx) {
      float sum = 0;
      for (int64_t k = 0; k < k_count; ++k) w[k] = static_cast<float>(q[k]);
      for (int64_t k = 0; k < k_count; k += 32) {
        const float partial = add(a, w, k, std::min(k_count, k + 32), 0);
        sum = Fma(partial, ToFloat(scales[k / 32]), sum);
      }
      return sum;
    }
    for (int64_t k = 0; k < k_count; ++k) w[k] = Int4Weight(q[k], scales[k / 32]);
  } else if (dtype == DType::kF8E4M3) {
    float sum = 0;
    for (int64_t k = 0; k < k_count; ++k) w[k] = E4M3ToFloat(p.bytes[n * k_count + k]);
    for (int64_t k = 0; k < k_count; k += kScaleBlock) {
      const float partial = add(a, w, k, std::min(k_count, k + kScaleBlock), 0);
      sum = Fma(partial, SourceScale(p.source, n, k), sum);
    }
    return sum;
  } else {
    ReadSource(p.source, n, 0, k_count, w.data());
    for (float& value : w) value = RoundToBF16(value);
  }
  return add(a, w, 0, k_count, 0);
}

class TileGemm : public testing::TestWithParam<Unit> {
 protected:
  void SetUp() override {
    if (!GetParam().failure.empty()) GTEST_SKIP() << GetParam().failure;
    family_ = &GetParam().family;
  }

  void ExpectExact(DType source, DType dtype) {
    const ScopedFlushDenormals flush;
    const bool amx = std::string(family_->name()) == "amx-bf16";
    Random random(5 + static_cast<int>(dtype));
    for (int trial = 0; trial < 40; ++trial) {
      // The last trials have more tiles along K than stay in one stretch.
      const GemmProblem p = MakeGemmProblem(random, source, {.k_max = trial < 34 ? 300 : 1300});
      for (const int64_t row_step : {p.m, int64_t{random.Integer(1, 40)}}) {
        const std::vector<float> c = Multiply(*family_, p, dtype, random, row_step);
        for (int64_t i = 0; i < p.m; ++i) {
          for (int64_t n = 0; n < p.source.rows; ++n) {
            ASSERT_EQ(c[i * p.source.rows + n], Expected(amx, p, dtype, i, n))
                << "row " << i << " of " << p.m << ", output " << n << " of " << p.source.rows
                << ", K " << p.source.cols << ", rows at once " << row_step;
          }
        }
      }
    }
  }

  const TileGemmFamily* family_ = nullptr;
};

TEST_P(TileGemm, BF16HasTheTreeOfItsFamily) { ExpectExact(DType::kBF16, DType::kBF16); }
TEST_P(TileGemm, RoundsOtherTypesToBF16) { ExpectExact(DType::kF32, DType::kBF16); }
TEST_P(TileGemm, E4M3AddsScaledPartialSumsInOrder) { ExpectExact(DType::kF8E4M3, DType::kF8E4M3); }

TEST_P(TileGemm, Int4HasTheTreeOfItsFamily) { ExpectExact(DType::kF32, DType::kI4); }

TEST_P(TileGemm, DecodesEveryNibbleUnderEveryKindOfScale) {
  const ScopedFlushDenormals flush;
  const bool amx = std::string(family_->name()) == "amx-bf16";
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> scales = {
      0,         1,           -0x1.02p0f,
      0x1.fep3f, 0x1p-126f,   0x1p-127f,
      0x1p-100f, 0x1.fep109,  0x1p110f,
      0x1p120f,  0x1.fep127f, -0x1.fep127f,
      infinity,  -infinity,   std::numeric_limits<float>::quiet_NaN()};
  constexpr int64_t kInputs = 32;
  const auto count = static_cast<int64_t>(scales.size());
  std::vector<BF16> stored;
  GemmProblem p;
  for (const float scale : scales) {
    for (int nibble = 0; nibble < 16; ++nibble) {
      p.bytes.insert(p.bytes.end(), kInputs / 2, static_cast<uint8_t>(nibble * 17));
      stored.push_back(ToBF16(scale));
    }
  }
  p.source = {.dtype = DType::kI4, .rows = 16 * count, .cols = kInputs, .data = p.bytes.data()};
  p.source.scales = stored.data();
  p.source.scales_dtype = DType::kBF16;
  Random random(4);
  for (const int64_t m : {1, 4, 7}) {
    p.m = m;
    p.a.assign(m * kInputs, BF16{0x3f80});
    const std::vector<float> c = Multiply(*family_, p, DType::kI4, random, m);
    for (int64_t i = 0; i < m * 16 * count; ++i) {
      const float expected = Expected(amx, p, DType::kI4, i / (16 * count), i % (16 * count));
      EXPECT_TRUE(c[i] == expected || (std::isnan(c[i]) && std::isnan(expected)))
          << c[i] << " for " << expected << ", scale " << scales[i / 16 % count] << ", nibble "
          << i % 16 << ", rows " << m;
    }
  }
}

TEST_P(TileGemm, DecodesEveryE4M3Code) {
  const std::vector<float> scales = {1, 1};
  for (const int64_t m : {1, 20}) {
    GemmProblem p;
    p.m = m;
    for (int i = 0; i < 256; ++i) p.bytes.push_back(static_cast<uint8_t>(i));
    p.source = {DType::kF8E4M3, 256, 1, p.bytes.data(), scales.data()};
    p.a.assign(m, BF16{0x3f80});
    Random random(1);
    const std::vector<float> c = Multiply(*family_, p, DType::kF8E4M3, random, m);
    for (int i = 0; i < 256; ++i) {
      if (IsE4M3NaN(p.bytes[i])) {
        EXPECT_TRUE(std::isnan(c[i])) << i;
      } else {
        EXPECT_EQ(c[i], E4M3ToFloat(p.bytes[i])) << i;
      }
    }
  }
}

TEST_P(TileGemm, ARowOfNaNsAndATailOfGarbageReachNoOtherRow) {
  Random random(2);
  GemmProblem p = MakeGemmProblem(random, DType::kBF16, {.m = 35, .n = 40, .k_max = 90});
  const std::vector<float> sound = Multiply(*family_, p, DType::kBF16, random, p.m);
  const int64_t k = p.source.cols;
  std::fill_n(p.a.begin() + 17 * k, k, BF16{0x7fc0});
  const std::vector<float> broken = Multiply(*family_, p, DType::kBF16, random, p.m);
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t n = 0; n < 40; ++n) {
      if (i == 17) {
        EXPECT_TRUE(std::isnan(broken[i * 40 + n]));
      } else {
        EXPECT_EQ(broken[i * 40 + n], sound[i * 40 + n]) << i;
      }
    }
  }
}

TEST_P(TileGemm, DenormalsAreZero) {
  const ScopedFlushDenormals flush;
  Random random(3);
  GemmProblem p = MakeGemmProblem(random, DType::kBF16, {.m = 3, .n = 5, .k_max = 40});
  for (BF16& value : p.a) value.bits &= 0x807f;  // denormal, or zero
  for (const float c : Multiply(*family_, p, DType::kBF16, random, p.m)) EXPECT_EQ(c, 0);
}

INSTANTIATE_TEST_SUITE_P(Units, TileGemm, testing::ValuesIn(Units()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace epic::kernels
