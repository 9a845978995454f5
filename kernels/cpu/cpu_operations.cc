#include "kernels/cpu/cpu_operations.h"

#include <algorithm>
#include <cstring>

#include "kernels/check.h"
#include "kernels/cpu/product_attention.h"
#include "kernels/flush_denormals.h"
#include "kernels/handle.h"
#include "kernels/number.h"
#include "kernels/numerics.h"

namespace epic::kernels {

CpuBackend::CpuBackend(const CpuFeatures& features, const VectorOps& ops,
                       const std::optional<TileGemmFamily>& tiled, const Int8GemmFamily& int8,
                       const CpuOptions& options)
    : cpu_name_(features.name),
      ops_(ops),
      fma_(ops),
      tiled_(tiled),
      int8_(int8),
      family_(tiled_.has_value() ? static_cast<const GemmFamily&>(*tiled_) : fma_, int8_),
      quantization_(options.quantization),
      kv_type_(options.kv_type),
      prompt_attention_(options.prompt_attention),
      checks_(options.kv_type),
      // Ranks that share these cores would pin their threads to the same ones.
      pool_(options.threads > 0 ? options.threads : ThreadPool::AvailableCores(),
            options.pin && options.ranks == 1, options.ranks),
      loader_(family_, fma_, options.quantization, options.prompt_attention, pool_),
      gemms_(pool_),
      split_attention_(MakeSplitAttention()),
      attention_(family_, *split_attention_, ops_, pool_, gemms_) {}

std::unique_ptr<SplitAttention> CpuBackend::MakeSplitAttention() const {
  if (tiled_.has_value()) return std::make_unique<ProductAttention>(*tiled_, ops_);
  return std::make_unique<VectorAttention>(ops_);
}

std::string CpuBackend::profile() const {
  return NumericProfile(family_.name(), ProfileTypes(quantization_), KvTypeName(kv_type_),
                        prompt_attention_);
}

std::string CpuBackend::description() const {
  return cpu_name_ + ", family " + family_.name() + ", " + ops_.name + ", INT8 on " +
         int8_.kernels_name() + ", " + std::to_string(pool_.threads()) +
         (pool_.pinned() ? " pinned" : "") + (pool_.threads() == 1 ? " thread" : " threads");
}

void CpuBackend::BeginStep(const StepPlan& plan, const Rope& rope) {
  checks_.Begin(plan, rope);
  rope_.Fill(plan, rope);
}

void CpuBackend::Embed(const StepPlan& plan, const SourceMatrix& table, Tensor residual) {
  checks_.Embed(plan, table, residual);
  // A row of the table is less work than to start the threads.
  for (int t = 0; t < plan.rows(); ++t) {
    ReadSource(table, plan.token_ids[t], 0, table.cols, residual.Row<float>(t));
  }
}

void CpuBackend::AttentionIn(const Attention& attention, const StepPlan& plan, const KvView& kv,
                             int layer, Tensor residual, Tensor query) {
  checks_.AttentionIn(attention.shape, plan, kv, layer, residual, query);
  // The calling thread computes too: small work stays on it, and its denormals must be zero as in
  // the pool.
  const ScopedFlushDenormals flush;
  attention_step_ =
      attention_.In(HandleAs<CpuAttention>(attention), plan, rope_, kv, layer, residual, query);
}

void CpuBackend::Attend(const Attention& attention, const StepPlan& plan, const KvView& kv,
                        int layer, Tensor query, Tensor output) {
  checks_.Attend(attention.shape, plan, kv, layer, query, output);
  const ScopedFlushDenormals flush;
  attention_.Attend(attention_step_, HandleAs<CpuAttention>(attention), plan, kv, layer, query,
                    output);
}

void CpuBackend::AttentionOut(const Attention& attention, Tensor output, Tensor residual) {
  StepChecks::AttentionOut(attention.shape, output, residual);
  const ScopedFlushDenormals flush;
  attention_.Out(attention_step_, HandleAs<CpuAttention>(attention), output, residual);
}

void CpuBackend::Norm(Tensor weight, float eps, Tensor residual, Tensor rows) {
  StepChecks::Norm(weight, residual, rows);
  const ScopedFlushDenormals flush;
  gemms_.Rows(residual.rows, 8 * residual.cols, [&](int64_t t, int) {
    ops_.rms_norm(residual.Row<float>(t), weight.As<float>(), residual.cols, eps,
                  rows.Row<BF16>(t));
  });
  gemms_.Run();
}

void CpuBackend::ChooseExperts(const Gate& base, const GateResult& result) {
  const ScopedFlushDenormals flush;
  const auto& gate = HandleAs<CpuGate>(base);
  StepChecks::ChooseExperts(gate.shape, result);
  // StepChecks knows a gate's shape and not its weight.
  KERNEL_CHECK_EQ(gate.weight.k, result.rows.cols);
  const int64_t rows = result.rows.rows;
  const int64_t experts = gate.shape.experts;
  auto* logits = logits_.Get<float>(rows * experts);
  // Family fma whatever the backend's: logits of the router are FP32 sums in every profile.
  gemms_.Products(fma_, {{result.rows.As<BF16>(), result.rows.cols, rows, gate.weight, {}}},
                  [&](const GemmBlock& block) { block.CopyTo(logits, experts); });
  gemms_.Rows(rows, 64 * experts, [&](int64_t t, int) {
    const bool sound = gate.chooser.Choose(logits + t * experts, result.experts.Row<int32_t>(t),
                                           result.weights.Row<float>(t));
    *result.faults.Row<uint8_t>(t) = sound ? 0 : 1;
  });
  gemms_.Run();
}

template <typename Destination>
void CpuBackend::AddMlps(std::span<const MlpRows> work, const Destination& destination) {
  std::vector<GemmJob> up, down;
  for (const MlpRows& w : work) {
    // The jobs of all experts are one list, so that threads share the work of all of them evenly.
    up.push_back({w.x, w.mlp->hidden, w.rows, w.mlp->gate, w.mlp->up});
    down.push_back({w.product, w.mlp->intermediate, w.rows, w.mlp->down, {}});
  }
  // Gate and up are one pass, so that the blocks of both are there for SiLU and never go to memory.
  gemms_.Products(family_, std::move(up), [this, work](const GemmBlock& block) {
    const MlpRows& w = work[block.job];
    for (int64_t t = block.row_begin; t < block.row_end; ++t) {
      ops_.silu_multiply(block.Row(t), block.SecondRow(t), block.columns(),
                         w.product + t * w.mlp->intermediate + block.n_begin);
    }
  });
  gemms_.Products(family_, std::move(down), [this, destination](const GemmBlock& block) {
    for (int64_t t = block.row_begin; t < block.row_end; ++t) {
      // Answers are rounded to BF16 once, here, whether they stay or travel.
      ops_.to_bf16(block.Row(t), block.columns(), destination(block.job, t) + block.n_begin);
    }
  });
}

void CpuBackend::Experts(std::span<const Mlp* const> experts, Tensor rows,
                         std::span<const ExpertRow> pairs, Tensor out) {
  StepChecks::Experts(experts, rows, pairs, out);
  if (pairs.empty()) return;
  const ScopedFlushDenormals flush;
  by_expert_.Sort(pairs, static_cast<int>(experts.size()));
  const std::span<const int32_t> order = by_expert_.pairs();
  const std::span<const PairsByExpert::Group> groups = by_expert_.groups();
  const int64_t hidden = rows.cols;
  auto* gathered = gathered_.Get<BF16>(static_cast<int64_t>(pairs.size()) * hidden);
  int64_t product_values = 0;
  std::vector<MlpRows> work;
  for (const PairsByExpert::Group& group : groups) {
    const CpuMlp* mlp = &HandleAs<CpuMlp>(*experts[group.expert]);
    // A row that is alone with its expert stays where it is: a copy would cost as much as its
    // share.
    const BF16* x = group.count == 1 ? rows.Row<BF16>(pairs[order[group.first]].row)
                                     : gathered + group.first * hidden;
    work.push_back({mlp, x, group.count, nullptr});
    product_values += group.count * mlp->intermediate;
  }
  // One piece for all experts: a Get for each would lose what the one before was given.
  auto* product = product_.Get<BF16>(product_values);
  for (MlpRows& w : work) {
    w.product = product;
    product += w.rows * w.mlp->intermediate;
  }
  // Where every expert has one row nothing was gathered.
  if (groups.size() < pairs.size()) {
    gemms_.Rows(static_cast<int64_t>(pairs.size()), 2 * hidden, [&](int64_t i, int) {
      std::memcpy(gathered + i * hidden, rows.Row<BF16>(pairs[order[i]].row), 2 * hidden);
    });
  }
  AddMlps(work,
          [&](int job, int64_t row) { return out.Row<BF16>(order[groups[job].first + row]); });
  gemms_.Run();
}

void CpuBackend::ApplyMlp(const Mlp& base, Tensor rows, Tensor out) {
  StepChecks::ApplyMlp(base, rows, out);
  if (rows.rows == 0) return;
  const ScopedFlushDenormals flush;
  const auto& mlp = HandleAs<CpuMlp>(base);
  const MlpRows work{&mlp, rows.As<BF16>(), rows.rows,
                     product_.Get<BF16>(rows.rows * mlp.intermediate)};
  AddMlps({&work, 1}, [&](int, int64_t row) { return out.Row<BF16>(row); });
  gemms_.Run();
}

void CpuBackend::Combine(Tensor shared, Tensor expert_rows, Tensor weights, Tensor residual) {
  StepChecks::Combine(shared, expert_rows, weights, residual);
  const ScopedFlushDenormals flush;
  const int64_t hidden = residual.cols;
  // Experts are summed before the residual joins: the order that docs/numerics.md fixes.
  auto* sums = sums_.Get<float>(pool_.threads() * hidden);
  gemms_.Rows(residual.rows, 2 * hidden * (weights.cols + 4), [&](int64_t t, int thread) {
    // Each thread has a row of sums of its own.
    float* sum = sums + thread * hidden;
    if (shared.data != nullptr) {
      ops_.widen(shared.Row<BF16>(t), hidden, sum);
    } else {
      std::fill_n(sum, hidden, 0.0f);
    }
    for (int64_t j = 0; j < weights.cols; ++j) {
      ops_.add_scaled(weights.Row<float>(t)[j], expert_rows.Row<BF16>(t * weights.cols + j), hidden,
                      sum);
    }
    ops_.add(sum, hidden, residual.Row<float>(t));
  });
  gemms_.Run();
}

void CpuBackend::Head(Tensor norm, float eps, const Matrix& head, const StepPlan& plan,
                      Tensor residual, Tensor logits) {
  StepChecks::Head(head, plan, norm, residual, logits);
  const auto count = static_cast<int64_t>(plan.logit_rows.size());
  if (count == 0) return;
  const ScopedFlushDenormals flush;
  const int64_t hidden = residual.cols;
  // Only the rows that want logits go through the head, which is one of a model's largest products.
  auto* rows = head_rows_.Get<BF16>(count * hidden);
  gemms_.Rows(count, 8 * hidden, [&](int64_t i, int) {
    ops_.rms_norm(residual.Row<float>(plan.logit_rows[i]), norm.As<float>(), hidden, eps,
                  rows + i * hidden);
  });
  const PackedWeight& weight = HandleAs<CpuMatrix>(head).weight;
  gemms_.Products(family_, {{rows, hidden, count, weight, {}}},
                  [&](const GemmBlock& block) { block.CopyTo(logits.As<float>(), logits.cols); });
  gemms_.Run();
}

}  // namespace epic::kernels
