#include "kernels/cuda/cuda_backend.h"

#include <utility>

#include "kernels/cuda/gate.h"
#include "kernels/cuda/pairs.h"

namespace epic::kernels::cuda {

CudaBackendResult MakeBackendOn(std::unique_ptr<DeviceRuntime> runtime, KvType kv_type,
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
      std::make_unique<CudaBackend>(std::move(runtime), std::move(heap), std::move(tiles), kv_type);
  return result;
}

CudaBackend::CudaBackend(std::unique_ptr<DeviceRuntime> runtime, std::unique_ptr<DeviceHeap> heap,
                         TileChoice tiles, KvType kv_type)
    : runtime_(std::move(runtime)),
      heap_(std::move(heap)),
      kv_type_(kv_type),
      products_(*heap_, std::move(tiles)),
      loader_(*heap_),
      arrays_(*heap_),
      attention_(*heap_, products_),
      mlps_(*heap_, products_),
      head_rows_(*heap_),
      gate_logits_(*heap_),
      logits_(*heap_) {}

CudaBackend::~CudaBackend() { runtime_->Wait(); }

std::string CudaBackend::profile() const {
  return std::string("epic-numerics-2/") + runtime_->family() +
         "/w:checkpoint,a:checkpoint,kv:" + KvTypeName(kv_type_) + "/absorbed/split" +
         std::to_string(kSplitTokens);
}

std::string CudaBackend::description() const {
  return runtime_->name() + ", " + std::to_string(runtime_->sm_count()) + " multiprocessors";
}

void CudaBackend::Embed(const StepPlan& plan, const SourceMatrix& table, Tensor residual) {
  EmbedRows(runtime_->stream(), {.rows = plan.rows(),
                                 .columns = static_cast<int>(residual.cols),
                                 .type = table.dtype,
                                 .table = table.data,
                                 .token_ids = arrays_.token_ids,
                                 .residual = residual.As<float>()});
}

void CudaBackend::AttentionIn(const Attention& attention, const StepPlan& plan, const KvView& kv,
                              int layer, Tensor residual, Tensor query) {
  attention_.In(static_cast<const CudaAttention&>(attention), arrays_, kv, layer, residual, query);
}

void CudaBackend::Attend(const Attention& attention, const StepPlan& plan, const KvView& kv,
                         int layer, Tensor query, Tensor output) {
  attention_.Attend(static_cast<const CudaAttention&>(attention), plan, arrays_, kv, layer, query,
                    output);
}

void CudaBackend::AttentionOut(const Attention& attention, Tensor output, Tensor residual) {
  attention_.Out(static_cast<const CudaAttention&>(attention), output, residual);
}

void CudaBackend::Norm(Tensor weight, float eps, Tensor residual, Tensor rows) {
  const auto hidden = static_cast<int>(residual.cols);
  RmsNorm(runtime_->stream(), {.rows = static_cast<int>(residual.rows),
                               .columns = hidden,
                               .x = residual.As<float>(),
                               .x_stride = hidden,
                               .weight = weight.As<float>(),
                               .eps = eps,
                               .out = {.rounded = rows.As<BF16>()}});
}

void CudaBackend::ChooseExperts(const Gate& base, const GateResult& result) {
  const auto& gate = static_cast<const CudaGate&>(base);
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
}

void CudaBackend::Experts(std::span<const Mlp* const> experts, Tensor rows,
                          std::span<const ExpertRow> pairs, Tensor out) {
  mlps_.Experts(experts, rows, pairs, out);
}

void CudaBackend::ApplyMlp(const Mlp& mlp, Tensor rows, Tensor out) {
  mlps_.Apply(static_cast<const CudaMlp&>(mlp), rows, out);
}

void CudaBackend::Combine(Tensor shared, Tensor expert_rows, Tensor weights, Tensor residual) {
  CombineRows(runtime_->stream(), {.rows = static_cast<int>(residual.rows),
                                   .top_k = static_cast<int>(weights.cols),
                                   .columns = static_cast<int>(residual.cols),
                                   .shared = shared.As<BF16>(),
                                   .answers = expert_rows.As<BF16>(),
                                   .weights = weights.As<float>(),
                                   .residual = residual.As<float>()});
}

void CudaBackend::Head(Tensor norm, float eps, const Matrix& base, const StepPlan& plan,
                       Tensor residual, Tensor logits) {
  const auto count = static_cast<int>(plan.logit_rows.size());
  if (count == 0) return;
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
