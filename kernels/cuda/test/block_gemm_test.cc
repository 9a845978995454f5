#include "kernels/cuda/block_gemm.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda/test/harness.h"
#include "kernels/number.h"
#include "kernels/tensor.h"

namespace epic::kernels::cuda {
namespace {

constexpr float kCardTolerance = 2e-3f;  // of a sum of about ±8; the tensor core keeps ~14 bits

struct Problem {
  int groups, rows, n, k;  // rows: of each group
  int k_blocks, n_blocks, stride;
  std::vector<uint8_t> x, w;
  std::vector<float> x_scale, w_scale;

  Problem(int groups, int rows, int n, int k, uint64_t seed)
      : groups(groups),
        rows(rows),
        n(n),
        k(k),
        k_blocks((k + kScaleBlock - 1) / kScaleBlock),
        n_blocks((n + kScaleBlock - 1) / kScaleBlock),
        stride((rows + 3) / 4 * 4) {
    Random random(seed);
    const auto code = [&] { return ToE4M3(random.Real(1)); };
    x.resize(size_t{1} * groups * rows * k);
    w.resize(size_t{1} * groups * n * k);
    x_scale.resize(size_t{1} * groups * k_blocks * stride);
    w_scale.resize(size_t{1} * groups * n_blocks * k_blocks);
    std::generate(x.begin(), x.end(), code);
    std::generate(w.begin(), w.end(), code);
    const auto scale = [&] { return 0.5f + random.Real(0.25f); };
    std::generate(x_scale.begin(), x_scale.end(), scale);
    std::generate(w_scale.begin(), w_scale.end(), scale);
  }

  // Row r of group g, by weights of group `of`, as block_gemm.h defines it.
  float Expected(int g, int r, int of, int column) const {
    float sum = 0;
    for (int b = 0; b < k_blocks; ++b) {
      float block = 0;
      for (int i = b * kScaleBlock; i < std::min(k, (b + 1) * kScaleBlock); ++i) {
        block = Fma(E4M3ToFloat(w[(size_t{1} * of * n + column) * k + i]),
                    E4M3ToFloat(x[(size_t{1} * g * rows + r) * k + i]), block);
      }
      const float scale =
          x_scale[(size_t{1} * g * k_blocks + b) * stride + r] *
          w_scale[(size_t{1} * of * n_blocks + column / kScaleBlock) * k_blocks + b];
      sum = Fma(block, scale, sum);
    }
    return sum;
  }
};

struct OnDevice {
  Buffer<uint8_t> x, w;
  Buffer<float> x_scale, w_scale;
  BlockGemmArguments arguments;

  explicit OnDevice(const Problem& p) : x(p.x), w(p.w), x_scale(p.x_scale), w_scale(p.w_scale) {
    arguments = {.groups = p.groups,
                 .rows = p.rows,
                 .n = p.n,
                 .k = p.k,
                 .x = x.data(),
                 .x_scale = x_scale.data(),
                 .x_scale_stride = p.stride,
                 .w = w.data(),
                 .w_scale = w_scale.data(),
                 .sm_count = 3};
  }
};

EPIC_KERNEL_TEST(DenseProductsOfOddSizesInEveryTile) {
  for (const int rows : {1, 17, 133}) {
    const Problem problem(1, rows, 200, 272, 1);
    OnDevice device(problem);
    std::vector<float> expected;
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < problem.n; ++c) expected.push_back(problem.Expected(0, r, 0, c));
    }
    for (const int tile : {16, 32, 64, 128}) {
      device.arguments.row_tile = tile;
      ForSeeds(rows == 17 ? 3 : 1, [&](Stream stream) {
        const Buffer<float> out(std::vector<float>(expected.size(), -7));
        device.arguments.out = out.data();
        BlockGemm(stream, device.arguments);
        ExpectProducts(out.Read(), expected, kCardTolerance, "out");
      });
    }
  }
}

// On the card this is the self-test that admits a tile: other tiles, other rows beside it.
EPIC_KERNEL_TEST(ARowHasTheSameBitsInEveryTileAndLayout) {
  const Problem problem(1, 150, 136, 400, 2);
  OnDevice device(problem);
  std::vector<std::vector<float>> results;
  for (const int tile : {16, 32, 64, 128}) {
    for (const int rows : {150, 5}) {
      device.arguments.row_tile = tile;
      device.arguments.rows = rows;
      const Buffer<float> out(std::vector<float>(size_t{150} * problem.n));
      device.arguments.out = out.data();
      BlockGemm(Stream{}, device.arguments);
      results.push_back(out.Read());
      results.back().resize(size_t{5} * problem.n);
    }
  }
  for (const auto& result : results) ExpectSame(result, results[0], "the first five rows");
}

EPIC_KERNEL_TEST(OutputsAreRoundedOrAdded) {
  const Problem problem(1, 9, 70, 128, 3);
  OnDevice device(problem);
  std::vector<BF16> rounded;
  std::vector<float> added;
  for (int i = 0; i < 9 * problem.n; ++i) {
    const float value = problem.Expected(0, i / problem.n, 0, i % problem.n);
    rounded.push_back(ToBF16(value));
    added.push_back(0.25f + value);
  }
  const Buffer<BF16> bf16(std::vector<BF16>(rounded.size()));
  device.arguments.output = GemmOutput::kBF16;
  device.arguments.out = bf16.data();
  BlockGemm(Stream{}, device.arguments);
  const std::vector<BF16> read = bf16.Read();
  std::vector<float> actual, expected;
  for (size_t i = 0; i < read.size(); ++i) {
    actual.push_back(ToFloat(read[i]));
    expected.push_back(ToFloat(rounded[i]));
  }
  ExpectProducts(actual, expected, 0.01f, "BF16");

  const Buffer<float> f32(std::vector<float>(added.size(), 0.25f));
  device.arguments.output = GemmOutput::kAddF32;
  device.arguments.out = f32.data();
  BlockGemm(Stream{}, device.arguments);
  ExpectProducts(f32.Read(), added, kCardTolerance, "added");
}

// One chain of multiply-adds per output, as the CPU's family `fma` has it.
EPIC_KERNEL_TEST(ProductsOfBF16PerHeadThroughStrides) {
  Random random(7);
  constexpr int kRows = 21, kHeads = 3, kN = 72, kK = 88, kWidth = 80;
  std::vector<BF16> x(kRows * kHeads * kK), w(kHeads * kN * kK);
  for (BF16& value : x) value = ToBF16(random.Real(1));
  for (BF16& value : w) value = ToBF16(random.Real(1));
  std::vector<float> expected(kRows * kHeads * kWidth, -7);
  for (int i = 0; i < kRows * kHeads * kN; ++i) {
    const int vector = i / kN;  // of a row and a head
    const int n = i % kN;
    float sum = 0;
    for (int k = 0; k < kK; ++k) {
      sum = Fma(ToFloat(w[(vector % kHeads * kN + n) * kK + k]), ToFloat(x[vector * kK + k]), sum);
    }
    expected[vector * kWidth + n] = sum;
  }
  const Buffer<BF16> x_in(x), w_in(w);
  for (const int tile : {16, 32, 64, 128}) {
    ForSeeds(2, [&](Stream stream) {
      const Buffer<float> out(std::vector<float>(expected.size(), -7));
      BlockGemm(stream, {.type = GemmType::kBF16,
                         .layout = GemmLayout::kMasked,
                         .groups = kHeads,
                         .rows = kRows,
                         .n = kN,
                         .k = kK,
                         .x = x_in.data(),
                         .x_row_stride = kHeads * kK,
                         .x_group_stride = kK,
                         .w = w_in.data(),
                         .out = out.data(),
                         .out_row_stride = kHeads * kWidth,
                         .out_group_stride = kWidth,
                         .sm_count = 2,
                         .row_tile = tile});
      ExpectProducts(out.Read(), expected, 1e-4f, "out");
    });
  }
}

EPIC_KERNEL_TEST(ContiguousSegmentsUseTheirGroupsWeights) {
  const Problem weights(3, 1, 96, 144, 4);
  const Problem rows(1, 400, 96, 144, 5);
  const std::vector<int32_t> segment_group = {2, -1, 0, 2};
  OnDevice device(weights);
  const OnDevice x(rows);
  const Buffer<int32_t> segments(segment_group);
  Problem both = rows;
  both.w = weights.w;
  both.w_scale = weights.w_scale;
  std::vector<float> expected(400 * 96, -7);
  for (int i = 0; i < 400 * 96; ++i) {
    const int group = segment_group[i / 96 / kSegmentRows];
    if (group >= 0) expected[i] = both.Expected(0, i / 96, group, i % 96);
  }
  device.arguments.layout = GemmLayout::kContiguous;
  device.arguments.rows = 400;
  device.arguments.x = x.x.data();
  device.arguments.x_scale = x.x_scale.data();
  device.arguments.x_scale_stride = rows.stride;
  device.arguments.segment_group = segments.data();
  for (const int tile : {0, 64}) {
    device.arguments.row_tile = tile;
    const Buffer<float> out(std::vector<float>(expected.size(), -7));
    device.arguments.out = out.data();
    BlockGemm(Stream{}, device.arguments);
    ExpectProducts(out.Read(), expected, kCardTolerance, "out");
  }
}

// In order 1, 0 of the two groups, whose scales lie apart too.
EPIC_KERNEL_TEST(GroupsThatLieApartAreReachedByTheirMaps) {
  const Problem problem(2, 9, 136, 144, 8);
  OnDevice device(problem);
  std::vector<float> expected;
  for (int i = 0; i < 2 * 9 * problem.n; ++i) {
    const int group = i / problem.n / 9;
    expected.push_back(problem.Expected(group, i / problem.n % 9, 1 - group, i % problem.n));
  }
  const int scales = problem.n_blocks * problem.k_blocks;
  const Buffer<const float*> scales_in({device.w_scale.data() + scales, device.w_scale.data()});
  for (const int tile : {16, 128}) {
    const auto map = [&](int group) {
      return WeightMap(GemmType::kE4M3, device.w.data() + group * problem.n * problem.k, problem.n,
                       problem.k, ColumnTile(tile));
    };
    const Buffer<TensorMap> maps({map(1), map(0)});
    const Buffer<float> out(std::vector<float>(expected.size(), -7));
    BlockGemmArguments a = device.arguments;
    a.layout = GemmLayout::kMasked;
    a.row_tile = tile;
    a.w = nullptr;
    a.w_scale = nullptr;
    a.w_maps = maps.data();
    a.w_scales = scales_in.data();
    a.out = out.data();
    BlockGemm(Stream{}, a);
    ExpectProducts(out.Read(), expected, kCardTolerance, "out");
  }
}

EPIC_KERNEL_TEST(MaskedGroupsComputeOnlyTheirRows) {
  const Problem problem(5, 20, 136, 256, 6);
  const std::vector<int32_t> group_rows = {3, 0, 20, 0, 17};
  OnDevice device(problem);
  const Buffer<int32_t> counts(group_rows);
  std::vector<float> expected(size_t{5} * 20 * problem.n, -7);
  for (int g = 0; g < 5; ++g) {
    for (int i = 0; i < group_rows[g] * problem.n; ++i) {
      expected[size_t{1} * g * 20 * problem.n + i] =
          problem.Expected(g, i / problem.n, g, i % problem.n);
    }
  }
  device.arguments.layout = GemmLayout::kMasked;
  device.arguments.group_rows = counts.data();
  for (const int tile : {16, 64}) {
    device.arguments.row_tile = tile;
    ForSeeds(2, [&](Stream stream) {
      const Buffer<float> out(std::vector<float>(expected.size(), -7));
      device.arguments.out = out.data();
      BlockGemm(stream, device.arguments);
      ExpectProducts(out.Read(), expected, kCardTolerance, "out");
    });
  }
}

}  // namespace
}  // namespace epic::kernels::cuda
