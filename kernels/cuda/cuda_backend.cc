#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"
#include "kernels/cuda/gate.h"
#include "kernels/cuda/pairs.h"
#include "kernels/handle.h"
#include "kernels/numerics.h"

namespace epic::kernels::cuda {
namespace {

// For ForEach, which draws tokens: a draw of 129,280 ids takes 0.1 ms (measured), so 8 threads draw
// 128 rows in about 2 ms. More were not tried.
constexpr int kHostThreadsMax = 8;

}  // namespace

CudaBackendResult MakeBackendOn(std::unique_ptr<DeviceRuntime> runtime, const CudaOptions& options,
                                const TileProduct& product) {
  auto heap = std::make_unique<DeviceHeap>(*runtime);
  // free_bytes is read before the tiles' test allocates, so that passing memory does not count as
  // used.
  CudaBackendResult result{.free_bytes = runtime->free_bytes()};
  TileChoice tiles = TileChoice::Test(*heap, product);
  result.notes = tiles.rejections();
  // A tile that errs is not used; a type without any tile cannot be multiplied at all.
  for (const GemmType type : {GemmType::kE4M3, GemmType::kBF16}) {
    if (!tiles.admitted(type).empty()) continue;
    result.error = runtime->name() + " fails the test of its matrix products in every tile";
    return result;
  }
  result.backend =
      std::make_unique<CudaBackend>(std::move(runtime), std::move(heap), std::move(tiles), options);
  return result;
}

CudaBackend::CudaBackend(std::unique_ptr<DeviceRuntime> runtime, std::unique_ptr<DeviceHeap> heap,
                         TileChoice tiles, const CudaOptions& options)
    : runtime_(std::move(runtime)),
      heap_(std::move(heap)),
      kv_type_(options.kv_type),
      checks_(options.kv_type),
      graphs_(*heap_, options.graphs),
      products_(*heap_, graphs_, std::move(tiles)),
      loader_(*heap_),
      arrays_(*heap_),
      attention_(*heap_, products_, graphs_),
      mlps_(*heap_, products_, graphs_),
      head_rows_(*heap_),
      gate_logits_(*heap_),
      logits_(*heap_),
      host_threads_(std::min(ThreadPool::AvailableCores(), kHostThreadsMax), /*pin=*/false) {}

// Launches may still read what the members own.
CudaBackend::~CudaBackend() { runtime_->Wait(); }

std::string CudaBackend::profile() const {
  return NumericProfile(runtime_->family(), "w:checkpoint,a:checkpoint", KvTypeName(kv_type_),
                        PromptAttention::kAbsorbed);
}

std::string CudaBackend::description() const {
  return runtime_->name() + ", " + std::to_string(runtime_->sm_count()) + " multiprocessors";
}

void CudaBackend::Embed(const StepPlan& plan, const SourceMatrix& table, Tensor residual) {
  checks_.Embed(plan, table, residual);
  KERNEL_CHECK(table.dtype == DType::kBF16 || table.dtype == DType::kF32, "type %d",
               static_cast<int>(table.dtype));
  BeginOperation(residual.rows);
  graphs_.RunOrRecord(EmbedRows, {.rows = static_cast<int>(residual.rows),
                                  .columns = static_cast<int>(residual.cols),
                                  .type = table.dtype,
                                  .table = table.data,
                                  .token_ids = arrays_.token_ids,
                                  .residual = residual.As<float>()});
}

void CudaBackend::AttentionIn(const Attention& base, const StepPlan& plan, const KvView& kv,
                              int layer, Tensor residual, Tensor query) {
  const auto& attention = HandleAs<CudaAttention>(base);
  checks_.AttentionIn(attention.shape, plan, kv, layer, residual, query);
  BeginOperation(residual.rows);
  attention_.In(attention, arrays_, kv, layer, residual, query);
}

void CudaBackend::Attend(const Attention& base, const StepPlan& plan, const KvView& kv, int layer,
                         Tensor query, Tensor output) {
  const auto& attention = HandleAs<CudaAttention>(base);
  checks_.Attend(attention.shape, plan, kv, layer, query, output);
  const std::span<const StepArrays::Mla> launches = arrays_.MlaFor(plan, attention.shape.heads);
  // Several launches share the memory of partial results, and another plan has another number of
  // them: such a step is launched as it is.
  graphs_.Begin(launches.size() == 1 && query.rows <= kBucketRowsMax);
  for (const StepArrays::Mla& mla : launches) {
    // A recording serves every plan of these rows: the launch is as large as any of them needs, and
    // the kernel reads how much this one has.
    const bool any_plan = graphs_.holding();
    attention_.Attend(
        attention, arrays_,
        any_plan ? mla.ForAnyPlan(static_cast<int>(query.rows), attention.shape.heads) : mla, kv,
        layer, query, output);
  }
}

void CudaBackend::AttentionOut(const Attention& base, Tensor output, Tensor residual) {
  const auto& attention = HandleAs<CudaAttention>(base);
  StepChecks::AttentionOut(attention.shape, output, residual);
  BeginOperation(output.rows);
  attention_.Out(attention, output, residual);
}

void CudaBackend::Norm(Tensor weight, float eps, Tensor residual, Tensor rows) {
  StepChecks::Norm(weight, residual, rows);
  // Only BF16 is written: Experts and ApplyMlp take BF16 rows, which may come from another rank,
  // and quantise them themselves.
  const auto hidden = static_cast<int>(residual.cols);
  BeginOperation(residual.rows);
  graphs_.RunOrRecord(RmsNorm, {.rows = static_cast<int>(residual.rows),
                                .columns = hidden,
                                .x = residual.As<float>(),
                                .x_stride = hidden,
                                .weight = weight.As<float>(),
                                .eps = eps,
                                .out = {.rounded = rows.As<BF16>()}});
}

void CudaBackend::ChooseExperts(const Gate& base, const GateResult& result) {
  const auto& gate = HandleAs<CudaGate>(base);
  StepChecks::ChooseExperts(gate.shape, result);
  const auto rows = static_cast<int>(result.rows.rows);
  BeginOperation(rows);
  // All parts of a router are BF16 (weights.h), so the rows need no quantised form.
  const DeviceRows x = {.places = rows,
                        .columns = static_cast<int>(result.rows.cols),
                        .rounded = result.rows.As<BF16>()};
  // Logits are FP32, to which later parts are added: rounding them would move choices between
  // experts.
  auto* logits = gate_logits_.Get<float>(int64_t{rows} * gate.shape.experts);
  // A router that is not BF16 is a sum of BF16 matrices, largest first (weights.h).
  GemmOutput output = GemmOutput::kF32;
  for (const DeviceMatrix& part : gate.parts) {
    products_.Multiply(part, x, output, logits);
    output = GemmOutput::kAddF32;
  }
  graphs_.RunOrRecord(cuda::ChooseExperts, {.shape = gate.shape,
                                            .rows = rows,
                                            .logits = logits,
                                            .bias = gate.bias.data,
                                            .experts = result.experts.As<int32_t>(),
                                            .weights = result.weights.As<float>(),
                                            .faults = result.faults.As<uint8_t>()});
}

void CudaBackend::Experts(std::span<const Mlp* const> experts, Tensor rows,
                          std::span<const ExpertRow> pairs, Tensor out) {
  StepChecks::Experts(experts, rows, pairs, out);
  graphs_.Begin(false);
  // The tables go up before the launches that read them, so nothing may be held back here; a batch
  // that can be replayed begins a piece of its own (MlpRunner::RunBatch).
  mlps_.Experts(experts, rows, pairs, out);
}

void CudaBackend::ApplyMlp(const Mlp& base, Tensor rows, Tensor out) {
  const auto& mlp = HandleAs<CudaMlp>(base);
  StepChecks::ApplyMlp(mlp, rows, out);
  BeginOperation(rows.rows);
  mlps_.Apply(mlp, rows, out);
  // The next operation may come only after rows of other ranks: the shared expert does not wait
  // for them.
  graphs_.Flush();
}

void CudaBackend::Combine(Tensor shared, Tensor expert_rows, Tensor weights, Tensor residual) {
  StepChecks::Combine(shared, expert_rows, weights, residual);
  BeginOperation(residual.rows);
  graphs_.RunOrRecord(CombineRows, {.rows = static_cast<int>(residual.rows),
                                    .top_k = static_cast<int>(weights.cols),
                                    .columns = static_cast<int>(residual.cols),
                                    .shared = shared.As<BF16>(),
                                    .answers = expert_rows.As<BF16>(),
                                    .weights = weights.As<float>(),
                                    .residual = residual.As<float>()});
}

void CudaBackend::Head(Tensor norm, float eps, const Matrix& base, const StepPlan& plan,
                       Tensor residual, Tensor logits) {
  StepChecks::Head(base, plan, norm, residual, logits);
  const auto count = static_cast<int>(plan.logit_rows.size());
  if (count == 0) return;
  graphs_.Begin(false);  // the logit rows are as many as the step wants
  const DeviceMatrix& head = HandleAs<CudaMatrix>(base).weight;
  const auto hidden = static_cast<int>(residual.cols);
  const DeviceRows x = head_rows_.Get(RowForms::Of({&head}), 1, count, hidden);
  graphs_.RunOrRecord(RmsNorm, {.rows = count,
                                .columns = hidden,
                                .x = residual.As<float>(),
                                .x_stride = hidden,
                                .x_rows = arrays_.logit_rows,
                                .weight = norm.As<float>(),
                                .eps = eps,
                                .out = x.outputs()});
  // The product writes to device memory and one copy brings all logits to the host: single values
  // would each cross the bus.
  auto* out = logits_.Get<float>(int64_t{count} * head.n);
  products_.Multiply(head, x, GemmOutput::kF32, out);
  runtime_->Copy(logits.data, out, int64_t{count} * head.n * 4);
}

}  // namespace epic::kernels::cuda
