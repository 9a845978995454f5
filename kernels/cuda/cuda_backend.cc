#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <utility>

#include "kernels/cuda/gate.h"
#include "kernels/cuda/pairs.h"

namespace epic::kernels::cuda {
namespace {

constexpr int kHostThreadsMax = 8;  // for ForEach

}  // namespace

CudaBackendResult MakeBackendOn(std::unique_ptr<DeviceRuntime> runtime, const CudaOptions& options,
                                const TileProduct& product) {
  auto heap = std::make_unique<DeviceHeap>(*runtime);
  CudaBackendResult result{.free_bytes = runtime->free_bytes()};
  TileChoice tiles = TileChoice::Test(*heap, product);
  result.notes = tiles.rejections();
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
      products_(*heap_, std::move(tiles)),
      loader_(*heap_),
      graphs_(*heap_, options.graphs),
      arrays_(*heap_),
      attention_(*heap_, products_),
      mlps_(*heap_, products_, graphs_),
      head_rows_(*heap_),
      gate_logits_(*heap_),
      logits_(*heap_),
      host_threads_(std::min(ThreadPool::AvailableCores(), kHostThreadsMax), /*pin=*/false) {}

CudaBackend::~CudaBackend() { runtime_->Wait(); }

std::string CudaBackend::profile() const {
  return std::string("epic-numerics-3/") + runtime_->family() +
         "/w:checkpoint,a:checkpoint,kv:" + KvTypeName(kv_type_) + "/absorbed/split" +
         std::to_string(kSplitTokens);
}

std::string CudaBackend::description() const {
  return runtime_->name() + ", " + std::to_string(runtime_->sm_count()) + " multiprocessors";
}

template <typename... Words>
void CudaBackend::Give(int64_t rows, std::function<void()> operation, const char* name,
                       const Words&... words) {
  if (rows > kBucketRowsMax) return graphs_.RunNow(operation);
  graphs_.Run(std::move(operation), name, rows, words...);
}

void CudaBackend::Embed(const StepPlan& plan, const SourceMatrix& table, Tensor residual) {
  const auto embed = [=, this] {
    EmbedRows(runtime_->stream(), {.rows = static_cast<int>(residual.rows),
                                   .columns = static_cast<int>(residual.cols),
                                   .type = table.dtype,
                                   .table = table.data,
                                   .token_ids = arrays_.token_ids,
                                   .residual = residual.As<float>()});
  };
  Give(residual.rows, embed, "embed", residual.cols, table.dtype, table.data, arrays_.token_ids,
       residual.data);
}

void CudaBackend::AttentionIn(const Attention& base, const StepPlan& plan, const KvView& kv,
                              int layer, Tensor residual, Tensor query) {
  const auto& attention = static_cast<const CudaAttention&>(base);
  const auto in = [=, this, &attention] {
    attention_.In(attention, arrays_, kv, layer, residual, query);
  };
  Give(residual.rows, in, "attention in", attention.id.value(), arrays_.record_index,
       arrays_.rope(true).cos, kv.layout.type, kv.slabs[layer], residual.data, query.data);
}

void CudaBackend::Attend(const Attention& base, const StepPlan& plan, const KvView& kv, int layer,
                         Tensor query, Tensor output) {
  const auto& attention = static_cast<const CudaAttention&>(base);
  const std::span<const StepArrays::Mla> launches = arrays_.MlaFor(plan, attention.shape.heads);
  if (launches.size() > 1 || query.rows > kBucketRowsMax || !graphs_.enabled()) {
    return graphs_.RunNow([&] {
      for (const StepArrays::Mla& mla : launches) {
        attention_.Attend(attention, arrays_, mla, kv, layer, query, output);
      }
    });
  }
  // For whatever steps of these rows have.
  StepArrays::Mla mla = launches[0];
  const bool merges = mla.partial_rows > 0;
  mla.tile_count = static_cast<int>(query.rows) *
                   ((attention.shape.heads + kMlaTileQueries - 1) / kMlaTileQueries);
  mla.unit_count = mla.tile_count + (merges ? kPartialRowsMax / kMlaTileQueries : 0);
  mla.partial_rows = merges ? kPartialRowsMax : 0;
  const auto attend = [=, this, &attention] {
    attention_.Attend(attention, arrays_, mla, kv, layer, query, output);
  };
  Give(query.rows, attend, "attend", attention.id.value(), merges, mla.tiles, mla.units, mla.counts,
       arrays_.pages, arrays_.positions, kv.layout.type, kv.slabs[layer], kv.page_count, query.data,
       output.data);
}

void CudaBackend::AttentionOut(const Attention& base, Tensor output, Tensor residual) {
  const auto& attention = static_cast<const CudaAttention&>(base);
  const auto out = [=, this, &attention] { attention_.Out(attention, output, residual); };
  Give(output.rows, out, "attention out", attention.id.value(), output.data, residual.data);
}

void CudaBackend::Norm(Tensor weight, float eps, Tensor residual, Tensor rows) {
  const auto norm = [=, this] {
    const auto hidden = static_cast<int>(residual.cols);
    RmsNorm(runtime_->stream(), {.rows = static_cast<int>(residual.rows),
                                 .columns = hidden,
                                 .x = residual.As<float>(),
                                 .x_stride = hidden,
                                 .weight = weight.As<float>(),
                                 .eps = eps,
                                 .out = {.rounded = rows.As<BF16>()}});
  };
  Give(residual.rows, norm, "norm", residual.cols, weight.data, eps, residual.data, rows.data);
}

void CudaBackend::ChooseExperts(const Gate& base, const GateResult& result) {
  const auto& gate = static_cast<const CudaGate&>(base);
  const auto choose = [=, this, &gate] {
    const auto rows = static_cast<int>(result.rows.rows);
    const DeviceRows x = {.places = rows,
                          .columns = static_cast<int>(result.rows.cols),
                          .rounded = result.rows.As<BF16>()};
    auto* logits = gate_logits_.Get<float>(int64_t{rows} * gate.shape.experts);
    GemmOutput output = GemmOutput::kF32;
    for (const DeviceMatrix& part : gate.parts) {
      products_.Multiply(part, x, output, logits);
      output = GemmOutput::kAddF32;
    }
    cuda::ChooseExperts(runtime_->stream(), {.shape = gate.shape,
                                             .rows = rows,
                                             .logits = logits,
                                             .bias = gate.bias.data,
                                             .experts = result.experts.As<int32_t>(),
                                             .weights = result.weights.As<float>(),
                                             .faults = result.faults.As<uint8_t>()});
  };
  Give(result.rows.rows, choose, "gate", gate.id.value(), result.rows.data, result.experts.data,
       result.weights.data, result.faults.data);
}

void CudaBackend::Experts(std::span<const Mlp* const> experts, Tensor rows,
                          std::span<const ExpertRow> pairs, Tensor out) {
  graphs_.Flush();
  mlps_.Experts(experts, rows, pairs, out);
}

void CudaBackend::ApplyMlp(const Mlp& base, Tensor rows, Tensor out) {
  const auto& mlp = static_cast<const CudaMlp&>(base);
  const auto apply = [=, this, &mlp] { mlps_.Apply(mlp, rows, out); };
  Give(rows.rows, apply, "mlp", mlp.id.value(), rows.data, out.data);
  // What follows a shared expert may wait for others: it is not to wait with it.
  graphs_.Flush();
}

void CudaBackend::Combine(Tensor shared, Tensor expert_rows, Tensor weights, Tensor residual) {
  const auto combine = [=, this] {
    CombineRows(runtime_->stream(), {.rows = static_cast<int>(residual.rows),
                                     .top_k = static_cast<int>(weights.cols),
                                     .columns = static_cast<int>(residual.cols),
                                     .shared = shared.As<BF16>(),
                                     .answers = expert_rows.As<BF16>(),
                                     .weights = weights.As<float>(),
                                     .residual = residual.As<float>()});
  };
  Give(residual.rows, combine, "combine", residual.cols, weights.cols, shared.data,
       expert_rows.data, weights.data, residual.data);
}

void CudaBackend::Head(Tensor norm, float eps, const Matrix& base, const StepPlan& plan,
                       Tensor residual, Tensor logits) {
  const auto count = static_cast<int>(plan.logit_rows.size());
  if (count == 0) return;
  graphs_.Flush();
  const DeviceMatrix& head = static_cast<const CudaMatrix&>(base).weight;
  const auto hidden = static_cast<int>(residual.cols);
  const DeviceRows x = head_rows_.Get(RowForms::Of({&head}), 1, count, hidden);
  RmsNorm(runtime_->stream(), {.rows = count,
                               .columns = hidden,
                               .x = residual.As<float>(),
                               .x_stride = hidden,
                               .x_rows = arrays_.logit_rows,
                               .weight = norm.As<float>(),
                               .eps = eps,
                               .out = x.outputs()});
  // A product scatters its values: to the host they go as one copy.
  auto* out = logits_.Get<float>(int64_t{count} * head.n);
  products_.Multiply(head, x, GemmOutput::kF32, out);
  runtime_->Copy(logits.data, out, int64_t{count} * head.n * 4);
}

}  // namespace epic::kernels::cuda
