// Read bandwidth of all threads, and what fraction of it products by one row reach on 2 GiB of
// weights. Prints bytes per second.
#include <benchmark/benchmark.h>
#include <emmintrin.h>

#include <cstring>
#include <memory>
#include <vector>

#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/fma_gemm.h"
#include "kernels/cpu/gemm_runner.h"
#include "kernels/cpu/huge_memory.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/vector_ops.h"

namespace epic::kernels {
namespace {

constexpr int64_t kTotalBytes = int64_t{2} << 30;

ThreadPool& Pool() {
  static ThreadPool pool(ThreadPool::AvailableCores(), false);
  return pool;
}

// Touched by the threads that read it.
HugeMemory& Weights() {
  static HugeMemory memory(kTotalBytes);
  static const bool touched = [] {
    Pool().Run([](int thread) {
      const int64_t share = kTotalBytes / Pool().threads();
      std::memset(memory.data() + thread * share, 0x21, share);
    });
    return true;
  }();
  (void)touched;
  return memory;
}

void ReadAll(benchmark::State& state) {
  constexpr int kStreams = 8;
  for (auto _ : state) {
    Pool().Run([&](int thread) {
      const int64_t share = kTotalBytes / Pool().threads();
      const int64_t stretch = share / kStreams;
      const std::byte* from = Weights().data() + thread * share;
      __m128i sum = _mm_setzero_si128();
      for (int64_t i = 0; i < stretch; i += 64) {
        for (int s = 0; s < kStreams; ++s) {
          const auto* line = reinterpret_cast<const __m128i*>(from + s * stretch + i);
          _mm_prefetch(reinterpret_cast<const char*>(line) + 2048, _MM_HINT_T0);
          sum = _mm_xor_si128(sum, _mm_xor_si128(line[0], line[1]));
          sum = _mm_xor_si128(sum, _mm_xor_si128(line[2], line[3]));
        }
      }
      benchmark::DoNotOptimize(sum);
    });
  }
  state.SetBytesProcessed(state.iterations() * kTotalBytes);
}

// Arguments: vectors (0 AVX2, 1 AVX-512), FP8 (0 or 1), rows, N, K.
void Products(benchmark::State& state) {
  if (state.range(0) == 1 && !DetectCpuFeatures().avx512) {
    state.SkipWithError("no AVX-512");
    return;
  }
  const FmaGemmFamily family(state.range(0) == 1 ? Avx512VectorOps() : Avx2VectorOps());
  const DType dtype = state.range(1) == 1 ? DType::kF8E4M3 : DType::kBF16;
  const int64_t rows = state.range(2);
  const int64_t n = state.range(3);
  const int64_t k = state.range(4);
  const int64_t bytes = PackedBytes(family, n, k, dtype);
  const int64_t count = kTotalBytes / bytes;
  const std::vector<BF16> a(rows * k, BF16{0x3f80});
  GemmRunner runner(Pool());
  for (auto _ : state) {
    for (int64_t i = 0; i < count; ++i) {
      const GemmJob job{a.data(), k, rows, {Weights().data() + i * bytes, n, k, dtype}, {}};
      runner.Products(family, {job},
                      [](const GemmBlock& block) { benchmark::DoNotOptimize(block.c[0]); });
      runner.Run();
    }
  }
  state.SetBytesProcessed(state.iterations() * count * bytes);
  state.counters["flops"] = benchmark::Counter(2.0 * rows * n * k * count * state.iterations(),
                                               benchmark::Counter::kIsRate);
}

BENCHMARK(ReadAll)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(Products)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->ArgsProduct({{1, 0}, {0, 1}, {1, 2, 3, 4, 6, 8, 16, 64}, {2048}, {2048}})
    ->Args({1, 0, 1, 1408, 2048})
    ->Args({1, 0, 1, 2048, 1408})
    ->Args({1, 1, 1, 7168, 2048});

}  // namespace
}  // namespace epic::kernels

BENCHMARK_MAIN();
