// A probe of each primitive of device.h, against what the manual says: on the host it shows that
// the emulation is right, on the card that the PTX is.
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cuda/test/harness.h"
#include "kernels/math.h"
#include "kernels/number.h"

namespace epic::kernels::cuda {
namespace {

constexpr int kSeeds = 5;

struct IntParams {
  const int32_t* in;
  int32_t* out;
};

struct IndicesKernel {
  using Params = IntParams;
  static constexpr int kThreads = 256;
  static constexpr int kSharedBytes = 0;
  static constexpr int kBlocksPerSm = 1;
  EPIC_DEVICE static void Run(const Params& params) {
    int32_t* out = params.out + (BlockIndex() * kThreads + ThreadIndex()) * 4;
    out[0] = BlockCount();
    out[1] = LaneIndex();
    out[2] = WarpIndex();
    out[3] = WarpgroupIndex();
  }
};

EPIC_KERNEL_TEST(Indices) {
  const Buffer<int32_t> out(std::vector<int32_t>(3 * 256 * 4));
  Launch<IndicesKernel>({}, 3, {nullptr, out.data()});
  std::vector<int32_t> expected;
  for (int i = 0; i < 3 * 256; ++i) {
    expected.insert(expected.end(), {3, i % 32, i % 256 / 32, i % 256 / 128});
  }
  ExpectSame(out.Read(), expected, "indices");
}

// Values go around the block in shared memory, through barriers of all and of halves.
struct BarriersKernel {
  using Params = IntParams;
  static constexpr int kThreads = 128;
  static constexpr int kSharedBytes = 3 * kThreads * 4;
  static constexpr int kBlocksPerSm = 1;
  EPIC_DEVICE static void Run(const Params& params) {
    const int t = ThreadIndex();
    const auto whole = SharedAt<int32_t>(0, kThreads);
    const auto halves = SharedAt<int32_t>(kThreads * 4, kThreads);
    const auto handed = SharedAt<int32_t>(2 * kThreads * 4, kThreads);
    whole.Store(t, params.in[t]);
    SyncBlock();
    const int32_t reversed = whole.Load(kThreads - 1 - t);
    const int half = t / 64;
    halves.Store(t, reversed);
    SyncThreads(1 + half, 64);
    const int32_t turned = halves.Load(half * 64 + (t + 1) % 64);
    // The first half only arrives, the second waits for it.
    if (half == 0) {
      handed.Store(t, turned);
      ArriveThreads(3, kThreads);
      params.out[t] = turned;
    } else {
      SyncThreads(3, kThreads);
      params.out[t] = turned + handed.Load(t - 64);
    }
  }
};

EPIC_KERNEL_TEST(BarriersOfThreads) {
  std::vector<int32_t> in(128), turned(128), expected(128);
  for (int i = 0; i < 128; ++i) in[i] = i * i;
  for (int i = 0; i < 128; ++i) turned[i] = in[127 - (i / 64 * 64 + (i + 1) % 64)];
  for (int i = 0; i < 128; ++i) expected[i] = i < 64 ? turned[i] : turned[i] + turned[i - 64];
  const Buffer<int32_t> device(in);
  ForSeeds(kSeeds, [&](Stream stream) {
    const Buffer<int32_t> out(std::vector<int32_t>(128));
    Launch<BarriersKernel>(stream, 1, {device.data(), out.data()});
    ExpectSame(out.Read(), expected, "out");
  });
}

struct WarpKernel {
  using Params = IntParams;
  static constexpr int kThreads = 64;
  static constexpr int kSharedBytes = 0;
  static constexpr int kBlocksPerSm = 1;
  EPIC_DEVICE static void Run(const Params& params) {
    const int32_t value = params.in[ThreadIndex()];
    int32_t* out = params.out + ThreadIndex() * 4;
    out[0] = ShuffleXor(value, 5);
    out[1] = ShuffleFrom(value, LaneIndex() * 3 % 32);
    out[2] = static_cast<int32_t>(Ballot(value % 3 == 0));
    out[3] = static_cast<int32_t>(ShuffleXor(static_cast<float>(value), 31));
    AtomicAdd(params.out + kThreads * 4, value);
  }
};

EPIC_KERNEL_TEST(WarpsAndAtomics) {
  std::vector<int32_t> in(64), expected;
  for (int i = 0; i < 64; ++i) in[i] = i * 7 % 64;
  int32_t sum = 0;
  for (int i = 0; i < 64; ++i) {
    const int warp = i / 32 * 32;
    uint32_t votes = 0;
    for (int j = 0; j < 32; ++j) votes |= (in[warp + j] % 3 == 0 ? 1u : 0u) << j;
    expected.insert(expected.end(), {in[i ^ 5], in[warp + i % 32 * 3 % 32],
                                     static_cast<int32_t>(votes), in[i ^ 31]});
    sum += in[i];
  }
  expected.push_back(sum);
  const Buffer<int32_t> device(in);
  ForSeeds(kSeeds, [&](Stream stream) {
    const Buffer<int32_t> out(std::vector<int32_t>(64 * 4 + 1));
    Launch<WarpKernel>(stream, 1, {device.data(), out.data()});
    ExpectSame(out.Read(), expected, "out");
  });
}

// Two warps hand 8 values over one slot, through a pair of phase barriers.
struct PhasesKernel {
  using Params = IntParams;
  static constexpr int kThreads = 64;
  static constexpr int kSharedBytes = 16 + 32 * 4;
  static constexpr int kBlocksPerSm = 1;
  EPIC_DEVICE static void Run(const Params& params) {
    const auto full = SharedAt<uint64_t>(0, 1);
    const auto empty = SharedAt<uint64_t>(8, 1);
    const auto slot = SharedAt<int32_t>(16, 32);
    if (ThreadIndex() == 0) {
      InitBarrier(full, 32);
      InitBarrier(empty, 32);
      FenceBarrierInit();
    }
    SyncBlock();
    const int lane = LaneIndex();
    for (int i = 0; i < 8; ++i) {
      const uint32_t phase = i % 2;
      if (WarpIndex() == 0) {
        WaitForPhase(empty, phase ^ 1);
        slot.Store(lane, params.in[i * 32 + lane]);
        Arrive(full);
      } else {
        WaitForPhase(full, phase);
        params.out[i * 32 + lane] = slot.Load(31 - lane);
        Arrive(empty);
      }
    }
  }
};

EPIC_KERNEL_TEST(BarriersOfPhases) {
  std::vector<int32_t> in(256), expected(256);
  for (int i = 0; i < 256; ++i) in[i] = i;
  for (int i = 0; i < 256; ++i) expected[i] = i / 32 * 32 + 31 - i % 32;
  const Buffer<int32_t> device(in);
  ForSeeds(kSeeds, [&](Stream stream) {
    const Buffer<int32_t> out(std::vector<int32_t>(256));
    Launch<PhasesKernel>(stream, 1, {device.data(), out.data()});
    ExpectSame(out.Read(), expected, "out");
  });
}

// Copies the box at (x, y, z) and writes shared memory out as it lies.
template <int kBytes>
struct CopyKernel {
  struct Params {
    TensorMap map;
    int x, y, z;
    uint32_t* out;
  };
  static constexpr int kThreads = 32;
  static constexpr int kSharedBytes = kBytes + 8;
  static constexpr int kBlocksPerSm = 1;
  EPIC_DEVICE static void Run(const Params& params) {
    const auto barrier = SharedAt<uint64_t>(kBytes, 1);
    const auto tile = SharedAt<uint32_t>(0, kBytes / 4);
    if (ThreadIndex() == 0) {
      InitBarrier(barrier, 1);
      FenceBarrierInit();
      ArriveAndExpect(barrier, kBytes);
      CopyTile(params.map, tile.address(), barrier, params.x, params.y, params.z);
    }
    SyncWarp();
    WaitForPhase(barrier, 0);
    for (int i = ThreadIndex(); i < kBytes / 4; i += 32) params.out[i] = tile.Load(i);
  }
};

EPIC_KERNEL_TEST(CopiesSwizzleAndFillWithZeros) {
  // 40 rows of 96 BF16, two of them: the box 64×16 at (64, 30, 1) leaves it on two sides.
  std::vector<uint16_t> in(2 * 40 * 96);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint16_t>(i + 1);
  const Buffer<uint16_t> device(in);
  const TensorMap map = MakeTensorMap({.data = device.data(),
                                       .element_bytes = 2,
                                       .extent = {96, 40, 2},
                                       .stride_bytes = {192, 192 * 40},
                                       .box = {64, 16, 1},
                                       .swizzled = true});
  std::vector<uint16_t> expected(16 * 64);
  for (int row = 0; row < 16; ++row) {
    for (int col = 0; col < 64; ++col) {
      const bool inside = 30 + row < 40 && 64 + col < 96;
      const int chunk = (col / 8) ^ (row % 8);
      expected[row * 64 + chunk * 8 + col % 8] = inside ? in[(40 + 30 + row) * 96 + 64 + col] : 0;
    }
  }
  std::vector<uint32_t> words(512);
  std::memcpy(words.data(), expected.data(), 2048);
  const Buffer<uint32_t> out(std::vector<uint32_t>(512));
  Launch<CopyKernel<2048>>({}, 1, {map, 64, 30, 1, out.data()});
  ExpectSame(out.Read(), words, "swizzled");
}

EPIC_KERNEL_TEST(CopiesOfFloatsLieInRows) {
  std::vector<uint32_t> in(5 * 24), expected;
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint32_t>(i + 1);
  for (int row = 3; row < 7; ++row) {
    for (int col = 12; col < 28; ++col) {
      expected.push_back(row < 5 && col < 22 ? in[row * 24 + col] : 0);
    }
  }
  const Buffer<uint32_t> device(in);
  const TensorMap map = MakeTensorMap({.data = device.data(),
                                       .element_bytes = 4,
                                       .extent = {22, 5, 1},
                                       .stride_bytes = {96, 480},
                                       .box = {16, 4, 1}});
  const Buffer<uint32_t> out(std::vector<uint32_t>(64));
  Launch<CopyKernel<256>>({}, 1, {map, 12, 3, 0, out.data()});
  ExpectSame(out.Read(), expected, "rows");
}

// D[64, N] = A·B, K of 128 bytes, in products of 32 bytes; then once more, accumulated.
enum class Kind { kE4M3, kBF16, kBF16Transposed };

template <Kind kKind, int kColumns>
struct ProductKernel {
  struct Params {
    TensorMap a, b;
    float* out;
  };
  static constexpr int kThreads = 128;
  static constexpr int kABytes = 64 * 128;
  // Transposed, B is boxes of 64 of N × 64 of K.
  static constexpr bool kTransposed = kKind == Kind::kBF16Transposed;
  static constexpr int kBoxes = kTransposed ? kColumns / 64 : 1;
  static constexpr int kBBytes = kTransposed ? kBoxes * 64 * 128 : kColumns * 128;
  static constexpr int kSharedBytes = kABytes + kBBytes + 8;
  static constexpr int kBlocksPerSm = 1;

  EPIC_DEVICE static void Run(const Params& params) {
    const auto barrier = SharedAt<uint64_t>(kABytes + kBBytes, 1);
    const uint32_t a = SharedAt<uint8_t>(0, kABytes).address();
    const uint32_t b = SharedAt<uint8_t>(kABytes, kBBytes).address();
    if (ThreadIndex() == 0) {
      InitBarrier(barrier, 1);
      FenceBarrierInit();
      ArriveAndExpect(barrier, kABytes + kBBytes);
      CopyTile(params.a, a, barrier, 0, 0, 0);
      for (int i = 0; i < kBoxes; ++i) {
        CopyTile(params.b, b + i * 64 * 128, barrier, i * 64, 0, 0);
      }
    }
    SyncBlock();
    WaitForPhase(barrier, 0);
    float d[kColumns / 2];
    ProductsBegin();
    for (int step = 0; step < 8; ++step) Product(d, a, b, step);
    ProductsCommit();
    ProductsWait<0>(d);
    for (int i = 0; i < kColumns / 2; ++i) {
      params
          .out[AccumulatorRow(ThreadIndex(), i) * kColumns + AccumulatorColumn(ThreadIndex(), i)] =
          d[i];
    }
  }

  EPIC_DEVICE static void Product(float (&d)[kColumns / 2], uint32_t a, uint32_t b, int step) {
    const uint32_t k = step % 4 * 32;
    if constexpr (kKind == Kind::kE4M3) {
      MultiplyE4M3<kColumns>(d, RowsDescriptor(a + k), RowsDescriptor(b + k), step > 0);
    } else if constexpr (kKind == Kind::kBF16) {
      MultiplyBF16<kColumns>(d, RowsDescriptor(a + k), RowsDescriptor(b + k), step > 0);
    } else {
      const uint64_t right = MatrixDescriptor(b + step % 4 * 2048, 64 * 128, kTileAlignmentBytes);
      MultiplyBF16Transposed<kColumns>(d, RowsDescriptor(a + k), right, step > 0);
    }
  }
};

template <Kind kKind, int kColumns>
void ProbeProduct() {
  constexpr bool kBytes = kKind == Kind::kE4M3;
  constexpr int kDepth = kBytes ? 128 : 64;
  Random random(kColumns);
  // Small integers: every sum is exact in any order.
  std::vector<float> a(64 * kDepth), b(kColumns * kDepth);
  for (float& value : a) value = static_cast<float>(random.Integer(-4, 4));
  for (float& value : b) value = static_cast<float>(random.Integer(-4, 4));
  const auto encode = [&](const std::vector<float>& values, bool transposed) {
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t at = transposed ? i % kColumns * kDepth + i / kColumns : i;
      if (kBytes) {
        bytes.push_back(ToE4M3(values[at]));
      } else {
        const uint16_t bits = ToBF16(values[at]).bits;
        bytes.insert(bytes.end(), {static_cast<uint8_t>(bits), static_cast<uint8_t>(bits >> 8)});
      }
    }
    return bytes;
  };
  constexpr bool kTransposed = kKind == Kind::kBF16Transposed;
  const Buffer<uint8_t> a_device(encode(a, false));
  const Buffer<uint8_t> b_device(encode(b, kTransposed));
  const auto map = [](const void* data, int rows, int columns, int box_rows) {
    const int element = kBytes ? 1 : 2;
    return MakeTensorMap({.data = data,
                          .element_bytes = element,
                          .extent = {columns, rows, 1},
                          .stride_bytes = {columns * element, columns * element * rows},
                          .box = {128 / element, box_rows, 1},
                          .swizzled = true});
  };
  const TensorMap b_map = kTransposed ? map(b_device.data(), kDepth, kColumns, kDepth)
                                      : map(b_device.data(), kColumns, kDepth, kColumns);
  std::vector<float> expected(64 * kColumns);
  for (int i = 0; i < 64 * kColumns; ++i) {
    for (int k = 0; k < kDepth; ++k) {
      expected[i] += 2 * a[i / kColumns * kDepth + k] * b[i % kColumns * kDepth + k];
    }
  }
  ForSeeds(2, [&](Stream stream) {
    const Buffer<float> out(std::vector<float>(64 * kColumns));
    Launch<ProductKernel<kKind, kColumns>>(
        stream, 1, {map(a_device.data(), 64, kDepth, 64), b_map, out.data()});
    ExpectSame(out.Read(), expected, "product");
  });
}

EPIC_KERNEL_TEST(ProductsOfE4M3) {
  ProbeProduct<Kind::kE4M3, 16>();
  ProbeProduct<Kind::kE4M3, 32>();
  ProbeProduct<Kind::kE4M3, 64>();
  ProbeProduct<Kind::kE4M3, 128>();
}
EPIC_KERNEL_TEST(ProductsOfBF16) {
  ProbeProduct<Kind::kBF16, 16>();
  ProbeProduct<Kind::kBF16, 32>();
  ProbeProduct<Kind::kBF16, 64>();
  ProbeProduct<Kind::kBF16, 128>();
}
EPIC_KERNEL_TEST(ProductsOfBF16WithTheRightOneTransposed) {
  ProbeProduct<Kind::kBF16Transposed, 64>();
  ProbeProduct<Kind::kBF16Transposed, 128>();
  ProbeProduct<Kind::kBF16Transposed, 256>();
}

struct ArithmeticKernel {
  struct Params {
    const float* in;
    float* exp2;
    uint16_t* e4m3;
    float* exp;
    float* decoded;
    uint32_t* bf16;
  };
  static constexpr int kThreads = 256;
  static constexpr int kSharedBytes = 0;
  static constexpr int kBlocksPerSm = 1;
  EPIC_DEVICE static void Run(const Params& params) {
    if (Uniform(WarpgroupIndex()) == 0) {
      ReleaseRegisters<40>();
    } else {
      ClaimRegisters<136>();
    }
    const float x = params.in[ThreadIndex()];
    params.exp2[ThreadIndex()] = FastExp2(x);
    params.e4m3[ThreadIndex()] = ToE4M3Pair(x, -2 * x);
    params.exp[ThreadIndex()] = Exp(x);
    const auto code = static_cast<uint16_t>(ThreadIndex());
    const FloatPair pair = FromE4M3Pair(static_cast<uint16_t>(code | (255 - code) << 8));
    params.decoded[2 * ThreadIndex()] = pair.low;
    params.decoded[2 * ThreadIndex() + 1] = pair.high;
    params.bf16[ThreadIndex()] = ToBF16Pair(x, -3 * x);
  }
};

EPIC_KERNEL_TEST(Arithmetic) {
  const float infinity = std::numeric_limits<float>::infinity();
  Random random(1);
  std::vector<float> in = {0,
                           -infinity,
                           1,
                           -1,
                           448,
                           464,
                           1e9f,
                           0x1p-10f,
                           -0x1.8p-9f,
                           infinity,
                           std::numeric_limits<float>::quiet_NaN()};
  while (in.size() < 256) in.push_back(random.Real(in.size() % 2 != 0 ? 1 : 100));
  std::vector<float> exp2, exp;
  std::vector<uint16_t> e4m3;
  for (const float x : in) {
    exp2.push_back(std::exp2(x) < 0x1p-126f ? 0 : std::exp2(x));
    exp.push_back(Exp(x));
    e4m3.push_back(static_cast<uint16_t>(ToE4M3(x) | ToE4M3(-2 * x) << 8));
  }
  const Buffer<float> device(in), exp2_out(in), exp_out(in);
  const Buffer<uint16_t> e4m3_out(e4m3);
  std::vector<float> decoded;
  std::vector<uint32_t> bf16;
  for (int code = 0; code < 256; ++code) {
    decoded.push_back(E4M3ToFloat(static_cast<uint8_t>(code)));
    decoded.push_back(E4M3ToFloat(static_cast<uint8_t>(255 - code)));
    bf16.push_back(ToBF16(in[code]).bits | static_cast<uint32_t>(ToBF16(-3 * in[code]).bits) << 16);
  }
  const Buffer<float> decoded_out(decoded);
  const Buffer<uint32_t> bf16_out(bf16);
  Launch<ArithmeticKernel>({}, 1,
                           {device.data(), exp2_out.data(), e4m3_out.data(), exp_out.data(),
                            decoded_out.data(), bf16_out.data()});
  ExpectSame(decoded_out.Read(), decoded, "E4M3 decoded");
  std::vector<uint32_t> pairs = bf16_out.Read();
  for (size_t i = 0; i < in.size(); ++i) {
    if (std::isnan(in[i])) pairs[i] = bf16[i];
  }
  ExpectSame(pairs, bf16, "BF16");
  ExpectSame(exp_out.Read(), exp, "Exp has the host's bits");
  std::vector<uint16_t> codes = e4m3_out.Read();
  for (size_t i = 0; i < in.size(); ++i) {
    if (std::isnan(in[i])) codes[i] |= 0x8080, e4m3[i] |= 0x8080;  // a NaN's sign is free
  }
  ExpectSame(codes, e4m3, "E4M3");
  std::vector<float> ratio, ones;
  const std::vector<float> actual = exp2_out.Read();
  for (size_t i = 0; i < in.size(); ++i) {
    if (std::isnan(exp2[i]) || exp2[i] == 0 || std::isinf(exp2[i])) {
      Expect(actual[i] == exp2[i] || std::isnan(exp2[i]), "FastExp2 at its ends");
      continue;
    }
    ratio.push_back(actual[i] / exp2[i]);
    ones.push_back(1);
  }
  ExpectNear(ratio, ones, 4e-7f, "FastExp2 over exp2");
}

}  // namespace
}  // namespace epic::kernels::cuda
