// Read bandwidth of all threads, and what fraction of it products by few rows reach on 2 GiB of
// weights, in bytes per second; and the products by many rows, in operations per second.
#include <benchmark/benchmark.h>
#include <emmintrin.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu/amx_probe.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/drive_inl.h"
#include "kernels/cpu/fma_gemm.h"
#include "kernels/cpu/gemm_runner.h"
#include "kernels/cpu/huge_memory.h"
#include "kernels/cpu/int8_gemm.h"
#include "kernels/cpu/tile_gemm.h"
#include "kernels/cpu/vector_ops.h"
#include "kernels/threads/thread_pool.h"

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
          _mm_prefetch(reinterpret_cast<const char*>(line) + AheadBytes(kStreams), _MM_HINT_T0);
          sum = _mm_xor_si128(sum, _mm_xor_si128(line[0], line[1]));
          sum = _mm_xor_si128(sum, _mm_xor_si128(line[2], line[3]));
        }
      }
      benchmark::DoNotOptimize(sum);
    });
  }
  state.SetBytesProcessed(state.iterations() * kTotalBytes);
}

struct Candidate {
  std::string name;  // family and instruction set
  std::unique_ptr<GemmFamily> family;
  std::vector<DType> dtypes;
};

// What this CPU has.
const std::vector<Candidate>& Candidates() {
  static const std::vector<Candidate> candidates = [] {
    const CpuFeatures features = DetectCpuFeatures();
    const std::vector<DType> real = {DType::kBF16, DType::kF8E4M3, DType::kI4};
    std::vector<Candidate> list;
    list.push_back({"fma/AVX2", std::make_unique<FmaGemmFamily>(Avx2VectorOps()), real});
    list.push_back(
        {"int8/AVX2", std::make_unique<Int8GemmFamily>(Avx2Int8Kernels()), {DType::kI8}});
    if (features.avx512) {
      list.push_back({"fma/AVX-512", std::make_unique<FmaGemmFamily>(Avx512VectorOps()), real});
    }
    if (features.avx512_vnni) {
      list.push_back(
          {"int8/VNNI", std::make_unique<Int8GemmFamily>(VnniInt8Kernels()), {DType::kI8}});
    }
    if (features.avx512_bf16) {
      list.push_back(
          {"avx512-bf16", std::make_unique<TileGemmFamily>(RealAvx512Bf16Kernels()), real});
    }
    if (AmxFailure().empty()) {
      list.push_back({"amx-bf16", std::make_unique<TileGemmFamily>(RealAmxKernels()), real});
      list.push_back(
          {"int8/AMX", std::make_unique<Int8GemmFamily>(RealAmxKernels()), {DType::kI8}});
    }
    return list;
  }();
  return candidates;
}

const char* NameOf(DType dtype) {
  switch (dtype) {
    case DType::kF8E4M3:
      return "FP8";
    case DType::kI8:
      return "INT8";
    case DType::kI4:
      return "INT4";
    default:
      return "BF16";
  }
}

// Arguments: rows, K, N.
void Products(benchmark::State& state, const GemmFamily& family, DType dtype) {
  const int64_t rows = state.range(0);
  const int64_t k = state.range(1);
  const int64_t n = state.range(2);
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
  state.counters["flops"] = benchmark::Counter(
      2.0 * static_cast<double>(rows * n * k * count) * static_cast<double>(state.iterations()),
      benchmark::Counter::kIsRate);
}

// One weight again and again, in cache: what the family reaches of its peak.
void Peak(benchmark::State& state, const GemmFamily& family, DType dtype) {
  constexpr int64_t kRows = 512;
  constexpr int64_t kInputs = 2048;
  constexpr int64_t kOutputs = 2816;
  const std::vector<BF16> a(kRows * kInputs, BF16{0x3f80});
  GemmRunner runner(Pool());
  const GemmJob job{a.data(), kInputs, kRows, {Weights().data(), kOutputs, kInputs, dtype}, {}};
  for (auto _ : state) {
    runner.Products(family, {job},
                    [](const GemmBlock& block) { benchmark::DoNotOptimize(block.c[0]); });
    runner.Run();
  }
  state.counters["flops"] =
      benchmark::Counter(2.0 * static_cast<double>(kRows * kInputs * kOutputs) *
                             static_cast<double>(state.iterations()),
                         benchmark::Counter::kIsRate);
}

BENCHMARK(ReadAll)->UseRealTime()->Unit(benchmark::kMillisecond);

void RegisterProducts() {
  for (const Candidate& candidate : Candidates()) {
    for (const DType dtype : candidate.dtypes) {
      const std::string name = candidate.name + "/" + NameOf(dtype);
      const GemmFamily& family = *candidate.family;
      benchmark::RegisterBenchmark(("Products/" + name).c_str(), Products, std::cref(family), dtype)
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond)
          ->ArgsProduct({{1, 2, 3, 4, 6, 8, 16, 32, 64}, {2048}, {2048}})
          ->Args({1, 2048, 1408})
          ->Args({1, 1408, 2048})
          ->Args({1, 2048, 7168});
      benchmark::RegisterBenchmark(("Peak/" + name).c_str(), Peak, std::cref(family), dtype)
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond);
    }
  }
}

}  // namespace
}  // namespace epic::kernels

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  epic::kernels::Weights();  // touched before anything is timed
  epic::kernels::RegisterProducts();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
