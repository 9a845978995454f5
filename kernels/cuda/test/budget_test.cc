// Every kernel fits the device, and every model's shapes fit the kernels. With arguments,
// object files beside which lie the logs of `ptxas -v`, also what the compiler made of them.
#include <cstdint>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <typeinfo>
#include <vector>

#include "kernels/cuda/argmax_kernel.h"
#include "kernels/cuda/block_gemm_kernel.h"
#include "kernels/cuda/gate_kernel.h"
#include "kernels/cuda/mla_decode_kernel.h"
#include "kernels/cuda/mla_merge_kernel.h"
#include "kernels/cuda/pairs_kernel.h"
#include "kernels/cuda/rows_kernel.h"

namespace epic::kernels::cuda {
namespace {

// Compute capability 9.0: CUDA C++ programming guide, "Technical specifications".
constexpr int kThreadsPerBlock = 1024;
constexpr int kThreadsPerSm = 2048;
constexpr int kSharedBytesPerBlock = 227 * 1024;
constexpr int kSharedBytesPerSm = 228 * 1024;
constexpr int kSharedBytesReserved = 1024;  // of each block, by the system
constexpr int kRegistersPerSm = 64 * 1024;
constexpr int64_t kBlocks = (int64_t{1} << 31) - 1;
constexpr int kParamBytes = 4096;

int failures = 0;

void Expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

struct KernelBudget {
  std::string name;  // mangled, without its namespace
  int threads;
  int blocks;
  int shared_bytes;
  size_t param_bytes;
};

template <typename Kernel>
KernelBudget BudgetOf() {
  const std::string prefix = "N4epic7kernels4cuda";
  std::string name = typeid(Kernel).name();
  if (name.compare(0, prefix.size(), prefix) == 0) {
    name = name.substr(prefix.size(), name.size() - prefix.size() - 1);
  }
  return {name, Kernel::kThreads, Kernel::kBlocksPerSm, Kernel::kSharedBytes,
          sizeof(typename Kernel::Params)};
}

std::vector<KernelBudget> AllKernels() {
  constexpr auto kE4M3 = GemmType::kE4M3;
  constexpr auto kBF16 = GemmType::kBF16;
  return {BudgetOf<BlockGemm16<kE4M3>>(),
          BudgetOf<BlockGemm32<kE4M3>>(),
          BudgetOf<BlockGemm64<kE4M3>>(),
          BudgetOf<BlockGemm128<kE4M3>>(),
          BudgetOf<BlockGemm16<kBF16>>(),
          BudgetOf<BlockGemm32<kBF16>>(),
          BudgetOf<BlockGemm64<kBF16>>(),
          BudgetOf<BlockGemm128<kBF16>>(),
          BudgetOf<MlaSplitKernel<128, KvType::kBF16>>(),
          BudgetOf<MlaSplitKernel<512, KvType::kBF16>>(),
          BudgetOf<MlaSplitKernel<128, KvType::kFP8>>(),
          BudgetOf<MlaSplitKernel<512, KvType::kFP8>>(),
          BudgetOf<MlaMergeKernel<128>>(),
          BudgetOf<MlaMergeKernel<512>>(),
          BudgetOf<GateKernel>(),
          BudgetOf<RmsNormKernel>(),
          BudgetOf<QuantiseKernel>(),
          BudgetOf<SwiGluKernel>(),
          BudgetOf<EmbedKernel>(),
          BudgetOf<QueryKernel>(),
          BudgetOf<RecordKernel>(),
          BudgetOf<PlaceKernel>(),
          BudgetOf<PackKernel>(),
          BudgetOf<CombineKernel>(),
          BudgetOf<ArgmaxKernel>()};
}

void CheckKernel(const KernelBudget& kernel) {
  const std::string& name = kernel.name;
  Expect(kernel.threads % 32 == 0 && kernel.threads <= kThreadsPerBlock, name + ": threads");
  Expect(kernel.threads * kernel.blocks <= kThreadsPerSm, name + ": threads of an SM");
  Expect(kernel.shared_bytes <= kSharedBytesPerBlock, name + ": shared memory of a block");
  Expect((kernel.shared_bytes + kSharedBytesReserved) * kernel.blocks <= kSharedBytesPerSm,
         name + ": shared memory of an SM");
  Expect(kernel.param_bytes <= kParamBytes, name + ": parameters");
}

// The real values of published configurations.
struct Model {
  const char* name;
  int hidden, heads, q_rank, intermediate, moe_intermediate, experts, shared_experts;
  GateShape gate;
};
constexpr int kLatent = 512, kNope = 128, kRope = 64, kValue = 128;

std::vector<Model> Models() {
  const GateShape greedy = {.experts = 64, .top_k = 6};
  const GateShape v2 = {
      .experts = 160, .top_k = 6, .group_score = GroupScore::kMax, .groups = 8, .kept_groups = 3};
  const auto sigmoid = [](int experts, int top_k, int groups, int kept) {
    return GateShape{.experts = experts,
                     .top_k = top_k,
                     .score = GateScore::kSigmoid,
                     .group_score = GroupScore::kTopTwoSum,
                     .groups = groups,
                     .kept_groups = kept};
  };
  return {
      {"DeepSeek-V2-Lite", 2048, 16, 0, 10944, 1408, 64, 2, greedy},
      {"DeepSeek-V2", 5120, 128, 1536, 12288, 1536, 160, 2, v2},
      {"DeepSeek-V3, R1, V3.1, V3.2", 7168, 128, 1536, 18432, 2048, 256, 1, sigmoid(256, 8, 8, 4)},
      {"Kimi-K2-Instruct", 7168, 64, 1536, 18432, 2048, 384, 1, sigmoid(384, 8, 1, 1)},
      {"Moonlight-16B-A3B", 2048, 16, 0, 11264, 1408, 64, 2, sigmoid(64, 6, 1, 1)}};
}

void CheckGemm(const std::string& name, const BlockGemmArguments& a) {
  const BlockGemmTiles tiles = TilesOf(a);
  const std::string what = name + ": product of " + std::to_string(a.rows) + " rows, n " +
                           std::to_string(a.n) + ", k " + std::to_string(a.k);
  const auto check = [&](const TileShape& tile) {
    if (const char* problem = TileProblem(tile)) Expect(false, what + ": " + problem);
  };
  check(tiles.w);
  check(tiles.x);
  if (a.type == GemmType::kE4M3) check(tiles.x_scale);
  Expect(tiles.blocks > 0 && tiles.blocks <= kBlocks, what + ": blocks");
}

void CheckProducts(const Model& m, int rows) {
  const int query = m.heads * (kNope + kRope);
  const auto product = [&](GemmLayout layout, int groups, int n, int k) {
    for (const auto type : {GemmType::kE4M3, GemmType::kBF16}) {
      CheckGemm(m.name, {.type = type,
                         .layout = layout,
                         .groups = groups,
                         .rows = rows,
                         .n = n,
                         .k = k,
                         .x_scale_stride = (rows + 3) / 4 * 4});
    }
  };
  const auto dense = [&](int n, int k) { product(GemmLayout::kDense, 1, n, k); };
  dense((m.q_rank > 0 ? m.q_rank : query) + kLatent + kRope, m.hidden);
  if (m.q_rank > 0) dense(query, m.q_rank);
  dense(m.hidden, m.heads * kValue);
  for (const int width : {m.intermediate, m.shared_experts * m.moe_intermediate}) {
    dense(2 * width, m.hidden);
    dense(m.hidden, width);
  }
  for (const auto layout : {GemmLayout::kContiguous, GemmLayout::kMasked}) {
    product(layout, m.experts, 2 * m.moe_intermediate, m.hidden);
    product(layout, m.experts, m.hidden, m.moe_intermediate);
  }
  // Per head: the queries' first parts into the latent's space, and back to values.
  const int64_t width = kLatent + kRope;
  CheckGemm(m.name, {.type = GemmType::kBF16,
                     .layout = GemmLayout::kMasked,
                     .groups = m.heads,
                     .rows = rows,
                     .n = kLatent,
                     .k = kNope,
                     .x_row_stride = m.heads * kNope,
                     .x_group_stride = kNope,
                     .out_row_stride = m.heads * width,
                     .out_group_stride = width});
  CheckGemm(m.name, {.type = GemmType::kBF16,
                     .layout = GemmLayout::kMasked,
                     .groups = m.heads,
                     .rows = rows,
                     .n = kValue,
                     .k = kLatent,
                     .x_row_stride = m.heads * kLatent,
                     .x_group_stride = kLatent,
                     .out_row_stride = m.heads * kValue,
                     .out_group_stride = kValue});
  // A row's copies and packing go by 16 bytes.
  Expect(m.hidden % 16 == 0 && m.moe_intermediate % 16 == 0, std::string(m.name) + ": rows");
}

void CheckAttention(const Model& m, int rows, int context) {
  StepPlan plan;
  const int per_sequence = rows > 256 ? 512 : 1;
  for (int row = 0; row < rows; row += per_sequence) {
    plan.sequences.push_back({.first_row = row,
                              .row_count = std::min(per_sequence, rows - row),
                              .first_position = context,
                              .first_page = 0});
  }
  const MlaPlan mla = PlanMla(plan, m.heads, 1024);
  const std::string what = std::string(m.name) + ": attention";
  int64_t queries = 0;
  for (const MlaTile& tile : mla.tiles) {
    queries += tile.queries;
    Expect(tile.queries > 0 && tile.queries <= kMlaTileQueries, what + ": queries of a tile");
    Expect(tile.query / m.heads / per_sequence ==
               (tile.query + tile.queries - 1) / m.heads / per_sequence,
           what + ": a tile of two sequences");
  }
  Expect(queries == int64_t{rows} * m.heads, what + ": queries");
  Expect(int64_t{mla.partial_rows} <= int64_t{64} * static_cast<int64_t>(mla.units.size()),
         what + ": partial rows");
  Expect(static_cast<int64_t>(mla.tiles.size()) * kMlaTileQueries <= kBlocks, what + ": blocks");
  const MlaArguments arguments = {
      .rows = rows, .heads = m.heads, .latent_dim = kLatent, .page_count = 1 << 20};
  for (const TileShape& tile : {MlaQueryTile(arguments), MlaRecordTile(arguments)}) {
    if (const char* problem = TileProblem(tile)) Expect(false, what + ": " + problem);
  }
  MlaArguments fp8 = arguments;
  fp8.kv_type = KvType::kFP8;
  for (const TileShape& tile : {MlaRecordTile(fp8), MlaRecordEndTile(fp8)}) {
    if (const char* problem = TileProblem(tile)) Expect(false, what + ", FP8: " + problem);
  }
  const KvLayout layout = {.latent_dim = kLatent, .rope_dim = kRope};
  Expect(layout.record_bytes() == MlaRecordTile(arguments).stride_bytes[0], what + ": a record");
}

void CheckGate(const Model& m) {
  const GateShape& gate = m.gate;
  Expect(gate.experts == m.experts && gate.experts <= kGateExpertsMax &&
             gate.groups <= kGateGroupsMax && gate.top_k <= kGateTopKMax &&
             gate.experts % gate.groups == 0,
         std::string(m.name) + ": the gate's limits");
}

struct Compiled {
  int registers = -1;
  int stack_bytes = -1;
  int spill_bytes = -1;
};

// Entry name → what `ptxas -v` said.
std::map<std::string, Compiled> ReadLog(const std::string& path) {
  std::map<std::string, Compiled> entries;
  std::ifstream file(path);
  std::string line, entry;
  while (std::getline(file, line)) {
    const size_t quote = line.find("Compiling entry function '");
    int a = 0, b = 0, c = 0;
    if (quote != std::string::npos) {
      entry = line.substr(quote + 26, line.find('\'', quote + 26) - quote - 26);
    } else if (std::sscanf(line.c_str(),
                           " %d bytes stack frame, %d bytes spill stores, %d bytes spill loads", &a,
                           &b, &c) == 3) {
      entries[entry].stack_bytes = a;
      entries[entry].spill_bytes = b + c;
    } else if (const size_t used = line.find("Used "); used != std::string::npos) {
      entries[entry].registers = std::atoi(line.c_str() + used + 5);
    }
  }
  return entries;
}

void CheckCompiled(const KernelBudget& kernel, const std::map<std::string, Compiled>& entries) {
  for (const auto& [entry, compiled] : entries) {
    if (entry.find("EntryINS1_" + kernel.name + "E") == std::string::npos) continue;
    const int registers = (compiled.registers + 7) / 8 * 8;
    std::printf("%-40s %4d threads x %2d, %3d registers, %6d shared bytes\n", kernel.name.c_str(),
                kernel.threads, kernel.blocks, compiled.registers, kernel.shared_bytes);
    Expect(compiled.registers > 0 && registers * kernel.threads * kernel.blocks <= kRegistersPerSm,
           kernel.name + ": registers");
    Expect(compiled.stack_bytes == 0 && compiled.spill_bytes == 0, kernel.name + ": spills");
    return;
  }
  Expect(false, kernel.name + ": not among the compiled kernels");
}

}  // namespace
}  // namespace epic::kernels::cuda

int main(int argc, char** argv) {
  using namespace epic::kernels::cuda;  // NOLINT
  for (const KernelBudget& kernel : AllKernels()) CheckKernel(kernel);
  for (const Model& model : Models()) {
    for (const int rows : {1, 16, 33, 64, 128, 4096, 16384}) {
      CheckProducts(model, rows);
      CheckAttention(model, rows, 8191);
    }
    CheckAttention(model, 1, 131071);
    CheckGate(model);
  }
  if (argc > 1) {
    std::map<std::string, Compiled> entries;
    for (int i = 1; i < argc; ++i) entries.merge(ReadLog(std::string(argv[i]) + ".log"));
    for (const KernelBudget& kernel : AllKernels()) CheckCompiled(kernel, entries);
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
