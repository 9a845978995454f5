// Transformer: the model as a TokenModel: a model::Step over the KV pool, its experts wherever the
// exchange finds them.
#pragma once

#include <optional>

#include "base/env.h"
#include "model/expert_exchange.h"
#include "model/model.h"
#include "model/step.h"
#include "worker/engine/token_model.h"
#include "worker/kv/kv_pool.h"

namespace epic::worker {

class Transformer : public TokenModel {
 public:
  // All outlive this. Steps have at most `rows_max` rows, `logit_rows_max` of them with logits.
  Transformer(const model::Model& model, kernels::Backend& backend, model::ExpertExchange& exchange,
              const KvPool& pool, int rows_max, int logit_rows_max)
      : model_(model),
        backend_(backend),
        kv_(pool.view()),
        exchange_(exchange),
        buffers_(model.config(), backend, rows_max, logit_rows_max) {}

  int vocab_size() const override { return model_.config().vocab_size; }
  void Begin(const kernels::StepPlan& plan) override {
    step_.emplace(model_, backend_, exchange_, kv_, plan, buffers_);
  }
  absl::StatusOr<Progress> Advance() override;
  StepPlace place() const override;
  // From now on attention stops every few milliseconds of `clock`, for others whose rows wait for
  // this rank's experts; null, as at first: it does not. Changes no bit.
  void PaceAttention(const Clock* clock) override { clock_ = clock; }

  std::span<float> Logits(int index) override { return step_->logits(index); }
  bool Fault(int row) const override { return step_->faults()[row] != 0; }
  void ForEach(int count, const std::function<void(int)>& task) override {
    backend_.ForEach(count, task);
  }

 private:
  absl::StatusOr<model::Step::Progress> AdvancePaced();

  const model::Model& model_;
  kernels::Backend& backend_;
  const kernels::KvView kv_;
  model::ExpertExchange& exchange_;
  model::StepBuffers buffers_;
  std::optional<model::Step> step_;
  const Clock* clock_ = nullptr;
  int64_t attend_pairs_max_ = 4096;
};

}  // namespace epic::worker
