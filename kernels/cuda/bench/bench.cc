// The speed of the kernels on this card, as fractions of peaks measured in the same run.
//   cuda_bench [peaks|mla|gemm|grouped|gate|rows|step ...]     nothing: all, about five minutes
#include <cmath>
#include <cstring>
#include <memory>

#include "kernels/cuda/bench/library_gemm.h"
#include "kernels/cuda/bench/measure.h"
#include "kernels/cuda/bench/step_bench.h"
#include "kernels/cuda/block_gemm.h"
#include "kernels/cuda/gate.h"
#include "kernels/cuda/mla_decode.h"
#include "kernels/cuda/pairs.h"
#include "kernels/cuda/rows.h"
#include "kernels/number.h"
#include "kernels/testing/v3_shape.h"

namespace epic::kernels::cuda {
namespace {

constexpr int kSkipped = 77;
constexpr int64_t kCacheBytes = int64_t{256} << 20;  // copies of data add up to more than any cache

int sm_count = 0;

struct ReadKernel {
  struct alignas(16) Chunk {
    uint32_t words[4];
  };
  struct Params {
    const Chunk* chunks;
    int64_t count;
    uint32_t* out;
  };
  static constexpr int kThreads = 512;
  static constexpr int kSharedBytes = 0;
  static constexpr int kBlocksPerSm = 2;
  static constexpr int kUnroll = 8;
  EPIC_DEVICE static void Run(const Params& p) {
    const int64_t step = int64_t{BlockCount()} * kThreads;
    uint32_t sum = 0;
    for (int64_t i = int64_t{BlockIndex()} * kThreads + ThreadIndex(); i < p.count;
         i += step * kUnroll) {
      Chunk chunks[kUnroll];
      EPIC_UNROLL
      for (int j = 0; j < kUnroll; ++j) {
        chunks[j] = i + j * step < p.count ? p.chunks[i + j * step] : Chunk{};
      }
      EPIC_UNROLL
      for (int j = 0; j < kUnroll; ++j) sum ^= chunks[j].words[0] ^ chunks[j].words[3];
    }
    if (sum == 0x12345678u) *p.out = sum;
  }
};

Peaks MeasurePeaks() {
  Peaks peaks;
  const int64_t bytes = int64_t{4} << 30;
  {
    const BenchMemory memory(bytes);
    const BenchMemory out(256);
    const Timing timing = Measure([&](int) {
      Launch<ReadKernel>(nullptr, sm_count * ReadKernel::kBlocksPerSm,
                         {memory.As<ReadKernel::Chunk>(), bytes / 16, out.As<uint32_t>()});
    });
    peaks.read_gbs = static_cast<double>(bytes) / timing.median_us * 1e-3;
    Report("peak", "read 4 GiB", timing, Bandwidth(static_cast<double>(bytes), timing, peaks));
  }
  for (const bool fp8 : {false, true}) {
    constexpr int kSize = 8192;
    const int64_t matrix = int64_t{kSize} * kSize * (fp8 ? 1 : 2);
    const BenchMemory x(matrix), w(matrix), out(int64_t{kSize} * kSize * 2);
    BenchMemory scales(int64_t{kSize} * kSize / 16);
    scales.FillFloats(1);
    const auto run = MakeLibraryGemm({kSize, kSize, kSize, fp8, x.As<void>(), w.As<void>(),
                                      scales.As<float>(), scales.As<float>(), out.As<void>()});
    if (run == nullptr) continue;
    const Timing timing = Measure([&](int) { run(); });
    const double operations = 2.0 * kSize * kSize * kSize;
    (fp8 ? peaks.fp8_tflops : peaks.bf16_tflops) = operations / timing.median_us * 1e-6;
    Report("peak", fp8 ? "cuBLASLt FP8 8192^3, VEC/BLK scales" : "cuBLASLt BF16 8192^3", timing,
           Throughput(operations, timing, 0));
  }
  return peaks;
}

void BenchMla(const Peaks& peaks, KvType type, int heads, int batch, int context) {
  constexpr int kLatent = 512;
  constexpr int kWidth = kLatent + kMlaRopeDim;
  const int pages = (context + 63) / 64;
  StepPlan plan;
  for (int i = 0; i < batch; ++i) {
    plan.sequences.push_back({i, 1, context - 1, static_cast<int32_t>(plan.pages.size())});
    plan.positions.push_back(context - 1);
    // Pages of one sequence lie apart, as after a while of serving.
    for (int page = 0; page < pages; ++page) plan.pages.push_back(page * batch + i);
  }
  const MlaPlan mla = PlanMla(plan, heads, kSplitTokens);
  const int page_count = pages * batch;
  const bool fp8 = type == KvType::kFP8;
  const int64_t record_bytes = MlaLayout(type, kLatent).record_bytes();
  const BenchMemory slab(int64_t{page_count} * 64 * record_bytes);
  const BenchMemory query(int64_t{batch} * heads * kWidth * 2);
  const BenchMemory out(int64_t{batch} * heads * kLatent * 2);
  const BenchMemory values(int64_t{mla.partial_rows} * kLatent * 4 + 16);
  const BenchMemory states(int64_t{mla.partial_rows} * 8 + 16);
  BenchMemory page_table(plan.pages.size() * 4), positions(batch * 4);
  BenchMemory tiles(mla.tiles.size() * sizeof(MlaTile)), units(mla.units.size() * sizeof(MlaUnit));
  page_table.Set(plan.pages);
  positions.Set(plan.positions);
  tiles.Set(mla.tiles);
  units.Set(mla.units);
  const MlaArguments arguments = {.kv_type = type,
                                  .rows = batch,
                                  .heads = heads,
                                  .latent_dim = kLatent,
                                  .softmax_scale = 0.1f,
                                  .query = query.As<BF16>(),
                                  .slab = slab.As<std::byte>(),
                                  .page_count = page_count,
                                  .pages = page_table.As<int32_t>(),
                                  .positions = positions.As<int32_t>(),
                                  .tiles = tiles.As<MlaTile>(),
                                  .units = units.As<MlaUnit>(),
                                  .tile_count = static_cast<int>(mla.tiles.size()),
                                  .unit_count = static_cast<int>(mla.units.size()),
                                  .partial_values = values.As<float>(),
                                  .partial_states = states.As<MlaState>(),
                                  .out = out.As<BF16>(),
                                  .sm_count = sm_count};
  const Timing timing = Measure([&](int) { MlaDecode(nullptr, arguments); });
  const double records = static_cast<double>(batch) * context;
  char conditions[80];
  std::snprintf(conditions, sizeof(conditions), "heads %d, batch %d, context %d, %s KV", heads,
                batch, context, fp8 ? "FP8" : "BF16");
  Report("mla decode", conditions, timing,
         Bandwidth(records * static_cast<double>(record_bytes), timing, peaks) + "; " +
             Throughput(records * heads * 2 * (kWidth + kLatent), timing, peaks.bf16_tflops));
}

// Own kernel and the library in turns; also how far their results are apart.
void BenchGemm(const Peaks& peaks, int rows, int n, int k) {
  const int64_t w_bytes = int64_t{n} * k;
  const int copies = static_cast<int>(std::max(int64_t{1}, kCacheBytes / w_bytes));
  const int stride = (rows + 127) / 128 * 128;
  const BenchMemory w(w_bytes * copies), x(int64_t{rows} * k);
  const BenchMemory own(int64_t{rows} * n * 2), other(int64_t{rows} * n * 2);
  BenchMemory x_scale(int64_t{stride} * (k + 127) / 128 * 4 + 4096);
  BenchMemory w_scale(int64_t{(n + 127) / 128 + 4} * ((k + 127) / 128 + 4) * 4);
  x_scale.FillFloats(0.5f);
  w_scale.FillFloats(0.25f);
  const auto run_own = [&](int i) {
    BlockGemm(nullptr, {.rows = rows,
                        .n = n,
                        .k = k,
                        .x = x.As<uint8_t>(),
                        .x_scale = x_scale.As<float>(),
                        .x_scale_stride = stride,
                        .w = w.As<uint8_t>(i % copies * w_bytes),
                        .w_scale = w_scale.As<float>(),
                        .output = GemmOutput::kBF16,
                        .out = own.As<void>(),
                        .sm_count = sm_count});
  };
  std::vector<std::function<void()>> library;
  for (int i = 0; i < copies; ++i) {
    library.push_back(
        MakeLibraryGemm({rows, n, k, true, x.As<void>(), w.As<void>(i * w_bytes),
                         x_scale.As<float>(), w_scale.As<float>(), other.As<void>()}));
  }
  std::vector<std::function<void(int)>> runs = {run_own};
  const bool compare = library[0] != nullptr;
  if (compare) runs.push_back([&](int i) { library[i % copies](); });
  const std::vector<Timing> timings = MeasureInTurns(runs);
  const double bytes = static_cast<double>(w_bytes) + static_cast<double>(rows) * (k + 2.0 * n);
  std::string figures = rows <= 128 ? Bandwidth(bytes, timings[0], peaks)
                                    : Throughput(2.0 * rows * n * k, timings[0], peaks.fp8_tflops);
  if (compare) {
    run_own(0);
    library[0]();
    std::vector<BF16> a(int64_t{rows} * n), b(a.size());
    CheckCuda(cudaMemcpy(a.data(), own.As<void>(), a.size() * 2, cudaMemcpyDeviceToHost), "own");
    CheckCuda(cudaMemcpy(b.data(), other.As<void>(), b.size() * 2, cudaMemcpyDeviceToHost), "lib");
    double worst = 0, largest = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      worst = std::max(worst, std::fabs(double{ToFloat(a[i])} - ToFloat(b[i])));
      largest = std::max(largest, std::fabs(double{ToFloat(b[i])}));
    }
    char text[120];
    std::snprintf(text, sizeof(text), "; %.2fx cuBLASLt (%.2f us); apart by %.1e of the largest",
                  timings[1].median_us / timings[0].median_us, timings[1].median_us,
                  worst / largest);
    figures += text;
  }
  char conditions[80];
  std::snprintf(conditions, sizeof(conditions), "M %d, N %d, K %d", rows, n, k);
  Report("fp8 gemm", conditions, timings[0], figures);
}

// `rows` of each group: contiguous, or masked with places for twice as many.
void BenchGrouped(const Peaks& peaks, GemmLayout layout, int groups, int rows, int n, int k) {
  const bool masked = layout == GemmLayout::kMasked;
  const int total = masked ? 2 * rows : groups * rows;
  const int64_t x_rows = masked ? int64_t{groups} * total : total;
  const int stride = (total + 3) / 4 * 4;
  const BenchMemory w(int64_t{groups} * n * k), x(x_rows * k), out(x_rows * n * 2);
  BenchMemory x_scale(int64_t{stride} * (k + 127) / 128 * 4 * (masked ? groups : 1));
  BenchMemory w_scale(int64_t{groups} * ((n + 127) / 128) * ((k + 127) / 128) * 4);
  x_scale.FillFloats(0.5f);
  w_scale.FillFloats(0.25f);
  std::vector<int32_t> list;
  if (masked) {
    list.assign(groups, rows);
  } else {
    for (int i = 0; i < total / kSegmentRows; ++i) list.push_back(i * kSegmentRows / rows);
  }
  BenchMemory list_memory(list.size() * 4);
  list_memory.Set(list);
  const Timing timing = Measure([&](int) {
    BlockGemm(nullptr, {.layout = layout,
                        .groups = groups,
                        .rows = total,
                        .n = n,
                        .k = k,
                        .x = x.As<uint8_t>(),
                        .x_scale = x_scale.As<float>(),
                        .x_scale_stride = stride,
                        .w = w.As<uint8_t>(),
                        .w_scale = w_scale.As<float>(),
                        .segment_group = list_memory.As<int32_t>(),
                        .group_rows = list_memory.As<int32_t>(),
                        .output = GemmOutput::kBF16,
                        .out = out.As<void>(),
                        .sm_count = sm_count,
                        .row_tile = rows <= 16   ? 16
                                    : rows <= 32 ? 32
                                    : rows <= 64 ? 64
                                                 : 128});
  });
  const double operations = 2.0 * groups * rows * n * k;
  const double bytes =
      static_cast<double>(w.bytes()) + static_cast<double>(groups) * rows * (k + 2.0 * n);
  char conditions[80];
  std::snprintf(conditions, sizeof(conditions), "%d x %d rows, N %d, K %d", groups, rows, n, k);
  Report(masked ? "grouped masked" : "grouped contiguous", conditions, timing,
         Throughput(operations, timing, peaks.fp8_tflops) + "; " + Bandwidth(bytes, timing, peaks));
}

void BenchGate() {
  constexpr int kRows = 128;
  const BenchMemory logits(kRows * 256 * 4), bias(256 * 4), out(1 << 20);
  BenchMemory slot_rows(256 * 4);
  slot_rows.FillFloats(0);
  const Timing timing = Measure([&](int) {
    ChooseExperts(nullptr, {.shape = V3Gate(),
                            .rows = kRows,
                            .logits = logits.As<float>(),
                            .bias = bias.As<float>(),
                            .experts = out.As<int32_t>(),
                            .weights = out.As<float>(1 << 16),
                            .faults = out.As<uint8_t>(1 << 17),
                            .slots = out.As<int32_t>(1 << 18),
                            .slot_rows = slot_rows.As<int32_t>()});
  });
  Report("gate", "128 rows, 256 experts, top 8 of 4 groups", timing, "one launch");
}

void BenchRows(const Peaks& peaks) {
  constexpr int kRows = 4096, kHidden = 7168, kWidth = 2048;
  const BenchMemory x(int64_t{kRows} * kHidden * 4), out(int64_t{kRows} * kHidden * 2);
  const BenchMemory codes(int64_t{kRows} * kHidden), scales(int64_t{kRows} * 56 * 4);
  const BenchMemory weight(kHidden * 4);
  const RowOutputs outputs = {out.As<BF16>(), codes.As<uint8_t>(), scales.As<float>(), kRows};
  const Timing norm = Measure([&](int) {
    RmsNorm(nullptr, {.rows = kRows,
                      .columns = kHidden,
                      .x = x.As<float>(),
                      .x_stride = kHidden,
                      .weight = weight.As<float>(),
                      .eps = 1e-6f,
                      .out = outputs});
  });
  Report("rms norm + fp8", "4096 rows of 7168", norm,
         Bandwidth(static_cast<double>(kRows) * kHidden * 7, norm, peaks));
  const Timing swiglu = Measure([&](int) {
    SwiGlu(nullptr, {.rows = {.places = kRows},
                     .columns = kWidth,
                     .gate_up = x.As<float>(),
                     .out = {nullptr, codes.As<uint8_t>(), scales.As<float>(), kRows}});
  });
  Report("swiglu + fp8", "4096 rows of 2048", swiglu,
         Bandwidth(static_cast<double>(kRows) * kWidth * 9, swiglu, peaks));
}

void BenchAll(const std::function<bool(const char*)>& wanted) {
  const Peaks peaks = MeasurePeaks();
  for (const auto type : {KvType::kBF16, KvType::kFP8}) {
    if (!wanted("mla")) break;
    for (const int heads : {16, 32, 64, 128}) BenchMla(peaks, type, heads, 128, 8192);
    for (const int heads : {16, 64, 128}) BenchMla(peaks, type, heads, 1, 32768);
  }
  // [N, K] of DeepSeek-V3: expert down, o, q_b, q_a with kv_a, expert gate and up, kv_b.
  const int shapes[][2] = {{7168, 2048}, {7168, 16384}, {24576, 1536},
                           {2112, 7168}, {4096, 7168},  {32768, 512}};
  for (const auto& [n, k] : shapes) {
    if (!wanted("gemm")) break;
    for (const int rows : {1, 16, 64, 128, 4096}) BenchGemm(peaks, rows, n, k);
  }
  for (const auto& [n, k] : {std::pair{4096, 7168}, std::pair{7168, 2048}}) {
    if (!wanted("grouped")) break;
    BenchGrouped(peaks, GemmLayout::kContiguous, 4, 8192, n, k);
    BenchGrouped(peaks, GemmLayout::kContiguous, 8, 4096, n, k);
    BenchGrouped(peaks, GemmLayout::kMasked, 4, 256, n, k);
    BenchGrouped(peaks, GemmLayout::kMasked, 1, 1024, n, k);
    for (const int rows : {1, 4, 8}) BenchGrouped(peaks, GemmLayout::kMasked, 32, rows, n, k);
  }
  if (wanted("gate")) BenchGate();
  if (wanted("rows")) BenchRows(peaks);
  if (wanted("step")) BenchSteps();
}

}  // namespace
}  // namespace epic::kernels::cuda

int main(int argc, char** argv) {
  using namespace epic::kernels::cuda;  // NOLINT
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("skipped: no CUDA device\n");
    return kSkipped;
  }
  cudaDeviceProp device;
  CheckCuda(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  if (device.major != 9) {
    std::printf("skipped: %s is not of compute capability 9.0\n", device.name);
    return kSkipped;
  }
  int runtime = 0, driver = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  sm_count = device.multiProcessorCount;
  std::printf("%s, %d SMs, %.1f GiB, CUDA %d, driver %d; medians of 7 rounds\n", device.name,
              sm_count, static_cast<double>(device.totalGlobalMem) / (1 << 30), runtime, driver);
  BenchAll([&](const char* name) {
    for (int i = 1; i < argc; ++i) {
      if (std::strcmp(argv[i], name) == 0) return true;
    }
    return argc == 1;
  });
}
