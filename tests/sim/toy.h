// The toy in place of the transformer: hashes whose every layer goes through the real exchange. A
// row missing, doubled, misplaced, or read through a wrong page changes the tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/sim_loop.h"
#include "model/expert_exchange.h"
#include "model/sampler.h"
#include "worker/engine/token_model.h"
#include "worker/exchange/dispatch_frame.h"
#include "worker/experts/expert_set.h"
#include "worker/testing/toy_experts.h"

namespace epic::sim {

inline constexpr int kVocab = 13;
inline constexpr int kToyLayers = 3;
inline constexpr int kFirstExpertLayer = 1;
constexpr worker::ExchangeShape ToyShape(int expert_count) {
  return {
      .layer_count = kToyLayers, .expert_count = expert_count, .experts_per_token = 2, .hidden = 4};
}

// One row's way through the layers; both the model and its oracle are made of these.
uint64_t ToyEmbed(int32_t token, int position);
uint64_t ToyAttend(int layer, uint64_t record_before, uint64_t state);
void ToyRow(uint64_t state, std::span<uint16_t> row);
void ToyGate(uint64_t state, int expert_count, std::span<int32_t> experts);
uint64_t ToyCombine(uint64_t state, std::span<const uint16_t> answers);
void ToyLogits(uint64_t state, std::span<float> logits);

// What one rank alone makes of a request.
std::vector<int32_t> OracleTokens(int expert_count, const std::vector<int32_t>& prompt,
                                  const model::SamplingParams& sampling, int max_tokens,
                                  int32_t stop_token);

class SimModel : public worker::TokenModel {
 public:
  // `fault`: a page that was never written has been read.
  SimModel(model::ExpertExchange& exchange, int expert_count, int page_count,
           std::function<void(std::string)> fault);

  void ErasePage(int32_t page);
  // Whether the last Advance had to wait, and in which layer it is.
  bool waiting() const { return waiting_; }
  int layer() const { return layer_; }

  int vocab_size() const override { return kVocab; }
  void Begin(const kernels::StepPlan& plan) override;
  absl::StatusOr<Progress> Advance() override;
  std::span<float> Logits(int index) override {
    return std::span(logits_).subspan(static_cast<size_t>(index) * kVocab, kVocab);
  }
  bool Fault(int) const override { return false; }

 private:
  enum class Stage { kAttention, kBegin, kShared, kFinish, kHead };

  void Attend();
  void BeginExchange();
  absl::Status FinishExchange();
  void NextLayer();
  kernels::Tensor Out();

  model::ExpertExchange& exchange_;
  const std::function<void(std::string)> fault_;
  const int expert_count_;
  const int page_count_;
  std::vector<uint64_t> records_;  // [layer][page][kPageTokens]
  const kernels::StepPlan* plan_ = nullptr;
  Stage stage_ = Stage::kAttention;
  int layer_ = 0;
  bool waiting_ = false;
  model::ExpertExchange::Ticket ticket_ = 0;
  std::vector<uint64_t> states_;  // [rows]
  std::vector<uint16_t> rows_, answers_;
  std::vector<int32_t> experts_;
  std::vector<float> logits_;
};

// Slots of ToyExperts that take time to fill.
class SimExperts : public worker::ExpertSlots {
 public:
  SimExperts(const Clock& clock, int slots, absl::Duration load_time)
      : clock_(clock), slots_(slots), load_time_(load_time) {}

  void Order(worker::ExpertOrder order) override;
  bool loading() const override { return order_.has_value(); }
  std::optional<worker::ExpertOutcome> Advance() override;
  int slots() const override { return slots_; }
  int64_t order_bytes() const override { return loaded_; }
  int64_t order_total_bytes() const override { return 0; }
  // When Advance will have loaded one more.
  absl::Time due() const { return due_; }

  bool Holds(int layer, int expert) const override { return toy_.Holds(layer, expert); }
  void Compute(int layer, kernels::Tensor rows, std::span<const kernels::ExpertRow> pairs,
               kernels::Tensor out) override {
    toy_.Compute(layer, rows, pairs, out);
  }

 private:
  const Clock& clock_;
  const int slots_;
  const absl::Duration load_time_;
  worker::ToyExperts toy_;
  std::set<worker::ExpertName> held_;
  std::optional<worker::ExpertOrder> order_;
  absl::Time due_;
  int64_t loaded_ = 0;
};

}  // namespace epic::sim
