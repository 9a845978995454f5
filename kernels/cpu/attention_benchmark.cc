// Attention over the paged KV in V2-Lite's and V3's widths, next to the FMA peak of all threads;
// and the whole sub-layer on a prompt, absorbed and expanded.
#include <benchmark/benchmark.h>
#include <immintrin.h>

#include <cstring>
#include <memory>
#include <vector>

#include "kernels/cpu/amx_probe.h"
#include "kernels/cpu/cpu_attention.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/fma_gemm.h"
#include "kernels/cpu/gemm_runner.h"
#include "kernels/cpu/huge_memory.h"
#include "kernels/cpu/product_attention.h"
#include "kernels/cpu/vector_ops.h"
#include "kernels/number.h"
#include "kernels/threads/thread_pool.h"

namespace epic::kernels {
namespace {

constexpr int kLatent = 512;
constexpr int kRope = 64;

ThreadPool& Pool() {
  static ThreadPool pool(ThreadPool::AvailableCores(), false);
  return pool;
}

[[gnu::target("avx512f")]] void FmaAvx512(float* sums) {
  __m512 acc[16];
  for (auto& a : acc) a = _mm512_set1_ps(1);
  const __m512 x = _mm512_set1_ps(1.0001f);
  for (int i = 0; i < 1 << 20; ++i) {
#pragma GCC unroll 16
    for (auto& a : acc) a = _mm512_fmadd_ps(x, a, x);
  }
  for (const auto& a : acc) sums[0] += _mm512_reduce_add_ps(a);
}

[[gnu::target("avx2,fma")]] void FmaAvx2(float* sums) {
  __m256 acc[12];
  for (auto& a : acc) a = _mm256_set1_ps(1);
  const __m256 x = _mm256_set1_ps(1.0001f);
  for (int i = 0; i < 1 << 20; ++i) {
#pragma GCC unroll 12
    for (auto& a : acc) a = _mm256_fmadd_ps(x, a, x);
  }
  for (const auto& a : acc) sums[0] += _mm256_cvtss_f32(a);
}

bool Skip(benchmark::State& state) {
  const CpuFeatures features = DetectCpuFeatures();
  const bool has[] = {features.avx2, features.avx512, features.avx512_bf16, AmxFailure().empty()};
  if (has[state.range(0)]) return false;
  state.SkipWithError("not on this CPU");
  return true;
}

void FmaPeak(benchmark::State& state) {
  if (Skip(state)) return;
  const bool wide = state.range(0) == 1;
  std::vector<float> sums(64 * Pool().threads());
  for (auto _ : state) {
    Pool().Run(
        [&](int thread) { wide ? FmaAvx512(&sums[64 * thread]) : FmaAvx2(&sums[64 * thread]); });
    benchmark::DoNotOptimize(sums.data());
  }
  const double flops = (wide ? 16.0 * 16 : 12.0 * 8) * 2 * (1 << 20) * Pool().threads();
  state.counters["flops"] =
      benchmark::Counter(flops * state.iterations(), benchmark::Counter::kIsRate);
}

// Arguments: family (0 fma on AVX2, 1 fma on AVX-512, 2 avx512-bf16, 3 amx-bf16), heads, sequences,
// rows of each, records before them, latents (0 BF16, 1 FP8).
void Attend(benchmark::State& state) {
  if (Skip(state)) return;
  const VectorOps& ops = state.range(0) >= 1 ? Avx512VectorOps() : Avx2VectorOps();
  const TileGemmFamily tiled = state.range(0) == 2 ? TileGemmFamily(RealAvx512Bf16Kernels())
                                                   : TileGemmFamily(RealAmxKernels());
  const VectorAttention by_vectors(ops);
  const ProductAttention by_products(tiled, ops);
  const SplitAttention* split_attention = &by_products;
  if (state.range(0) < 2) split_attention = &by_vectors;
  const int heads = static_cast<int>(state.range(1));
  const int sequences = static_cast<int>(state.range(2));
  const int rows = static_cast<int>(state.range(3));
  const int context = static_cast<int>(state.range(4));
  const KvLayout layout{kLatent, kRope, state.range(5) == 1 ? KvType::kFP8 : KvType::kBF16};
  const int pages_each = (context + rows + kPageTokens - 1) / kPageTokens;
  HugeMemory slab(sequences * pages_each * layout.page_bytes());
  std::memset(slab.data(), 0x31, slab.bytes());  // 2.5e-9 everywhere
  StepPlan plan;
  for (int s = 0; s < sequences; ++s) {
    plan.sequences.push_back({plan.rows(), rows, context, static_cast<int32_t>(plan.pages.size())});
    for (int i = 0; i < pages_each; ++i) plan.pages.push_back(s * pages_each + i);
    for (int i = 0; i < rows; ++i) {
      plan.token_ids.push_back(0);
      plan.positions.push_back(context + i);
      plan.row_sequence.push_back(s);
    }
  }
  CpuAttention attention;
  attention.shape = {.heads = heads, .kv_rank = kLatent, .rope_dim = kRope, .softmax_scale = 0.1f};
  std::vector<BF16> query(int64_t{plan.rows()} * heads * (kLatent + kRope), BF16{0x3f80});
  std::vector<BF16> output(int64_t{plan.rows()} * heads * kLatent);
  const FmaGemmFamily family(ops);
  GemmRunner gemms(Pool());
  AttentionRunner runner(family, *split_attention, ops, Pool(), gemms);
  std::byte* const slabs[] = {slab.data()};
  for (auto _ : state) {
    runner.Attend({}, attention, plan, {layout, slabs, sequences * pages_each}, 0,
                  {DType::kBF16, plan.rows(), heads * (kLatent + kRope), query.data()},
                  {DType::kBF16, plan.rows(), int64_t{heads} * kLatent, output.data()});
  }
  const double keys = sequences * (rows * context + rows * (rows + 1) / 2.0);
  state.counters["flops"] = benchmark::Counter(
      keys * heads * 2 * (2 * kLatent + kRope) * state.iterations(), benchmark::Counter::kIsRate);
  const auto bytes = static_cast<double>(sequences) * (context + rows) * layout.record_bytes();
  state.SetBytesProcessed(static_cast<int64_t>(bytes * state.iterations()));
}

// V2-Lite's attention, every weight 2⁻⁷.
std::unique_ptr<Attention> LoadV2Lite(Backend& backend) {
  const AttentionShape shape{.hidden = 2048,
                             .heads = 16,
                             .kv_rank = kLatent,
                             .nope_dim = 128,
                             .rope_dim = kRope,
                             .v_dim = 128,
                             .norm_eps = 1e-6f,
                             .inner_norm_eps = 1e-6f,
                             .softmax_scale = 0.1f};
  const int64_t q = shape.heads * int64_t{shape.nope_dim + shape.rope_dim};
  const int64_t kv = shape.heads * int64_t{shape.nope_dim + shape.v_dim};
  const std::vector<BF16> weights(q * shape.hidden, BF16{0x3c00});
  const std::vector<float> norm(shape.hidden, 1.0f);
  const auto matrix = [&](int64_t rows, int64_t cols) {
    return SourceMatrix{.dtype = DType::kBF16, .rows = rows, .cols = cols, .data = weights.data()};
  };
  return backend.LoadAttention({.shape = shape,
                                .input_norm = norm,
                                .q = matrix(q, shape.hidden),
                                .kv_a = matrix(kLatent + kRope, shape.hidden),
                                .kv_a_norm = std::span(norm).first(kLatent),
                                .kv_b = matrix(kv, kLatent),
                                .o = matrix(shape.hidden, shape.heads * int64_t{shape.v_dim})});
}

// A chunk of a prompt through the sub-layer. Arguments: rows, records before them.
void Prompt(benchmark::State& state, PromptAttention form) {
  const int rows = static_cast<int>(state.range(0));
  const int context = static_cast<int>(state.range(1));
  const auto backend = MakeCpuBackend({.prompt_attention = form}).backend;
  const auto attention = LoadV2Lite(*backend);
  const AttentionShape& shape = attention->shape;
  const KvLayout layout{kLatent, kRope, KvType::kBF16};
  const int page_count = (context + rows + kPageTokens - 1) / kPageTokens;
  HugeMemory slab(page_count * layout.page_bytes());
  std::memset(slab.data(), 0x31, slab.bytes());
  StepPlan plan;
  plan.sequences.push_back(
      {.row_count = rows, .first_position = context, .prompt_length = context + rows});
  for (int i = 0; i < page_count; ++i) plan.pages.push_back(i);
  plan.token_ids.assign(rows, 0);
  plan.row_sequence.assign(rows, 0);
  for (int i = 0; i < rows; ++i) plan.positions.push_back(context + i);
  Rope rope;
  for (int i = 0; i < kRope / 2; ++i) rope.inverse_frequency.push_back(1.0 / (i + 1));
  std::vector<float> residual(int64_t{rows} * shape.hidden, 1.0f);
  std::vector<BF16> query(int64_t{rows} * shape.heads * (kLatent + kRope));
  std::vector<BF16> output(int64_t{rows} * shape.heads * kLatent);
  const Tensor x{DType::kF32, rows, shape.hidden, residual.data()};
  const Tensor q{DType::kBF16, rows, shape.heads * (kLatent + kRope), query.data()};
  const Tensor o{DType::kBF16, rows, int64_t{shape.heads} * kLatent, output.data()};
  std::byte* const slabs[] = {slab.data()};
  const KvView kv{layout, slabs, page_count};
  backend->BeginStep(plan, rope);
  for (auto _ : state) {
    backend->AttentionIn(*attention, plan, kv, 0, x, q);
    backend->Attend(*attention, plan, kv, 0, q, o);
    backend->AttentionOut(*attention, o, x);
  }
  state.SetItemsProcessed(state.iterations() * rows);
  state.SetLabel(backend->profile());
}

void PromptCases(benchmark::internal::Benchmark* of) {
  of->UseRealTime()->Unit(benchmark::kMillisecond);
  for (const int context : {0, 8192}) {
    for (const int rows : {64, 512, 2048}) of->Args({rows, context});
  }
}
BENCHMARK_CAPTURE(Prompt, absorbed, PromptAttention::kAbsorbed)->Apply(PromptCases);
BENCHMARK_CAPTURE(Prompt, expanded, PromptAttention::kExpanded)->Apply(PromptCases);

BENCHMARK(FmaPeak)->UseRealTime()->Unit(benchmark::kMillisecond)->Arg(1)->Arg(0);
BENCHMARK(Attend)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->ArgsProduct({{3, 2, 1, 0}, {16}, {1}, {1, 512}, {0, 8191}, {0, 1}})
    ->ArgsProduct({{3, 2, 1, 0}, {16}, {8}, {1}, {8191}, {0, 1}})
    ->ArgsProduct({{3, 2, 1, 0}, {128}, {1}, {1}, {8191}, {0, 1}});

}  // namespace
}  // namespace epic::kernels

BENCHMARK_MAIN();
