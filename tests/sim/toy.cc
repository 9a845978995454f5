#include "tests/sim/toy.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "kernels/kv_view.h"
#include "worker/testing/mix.h"

namespace epic::sim {

using kernels::kPageTokens;
using worker::Mix;

namespace {

constexpr uint64_t kEmpty = 0;
constexpr int kHidden = ToyShape(1).hidden;
constexpr int kChosen = ToyShape(1).experts_per_token;

}  // namespace

uint64_t ToyEmbed(int32_t token, int position) {
  return Mix(static_cast<uint64_t>(token) + 1, static_cast<uint64_t>(position));
}

uint64_t ToyAttend(int layer, uint64_t record_before, uint64_t state) {
  return Mix(record_before, state + static_cast<uint64_t>(layer)) | 1;
}

void ToyRow(uint64_t state, std::span<uint16_t> row) {
  for (uint16_t& value : row) {
    value = static_cast<uint16_t>(state);
    state = state >> 16 | state << 48;
  }
}

void ToyGate(uint64_t state, int expert_count, std::span<int32_t> experts) {
  static_assert(kChosen == 2);
  const int first = static_cast<int>(state >> 8 & 0xffff) % expert_count;
  const int step = 1 + static_cast<int>(state >> 24 & 0xffff) % (expert_count - 1);
  const int second = (first + step) % expert_count;
  experts[0] = std::min(first, second);
  experts[1] = std::max(first, second);
}

uint64_t ToyCombine(uint64_t state, std::span<const uint16_t> answers) {
  for (const uint16_t value : answers) state = Mix(state, value);
  return state;
}

void ToyLogits(uint64_t state, std::span<float> logits) {
  for (size_t token = 0; token < logits.size(); ++token) {
    logits[token] = static_cast<float>(Mix(state, token) >> 40) / (1 << 22) - 2.0f;
  }
}

std::vector<int32_t> OracleTokens(int expert_count, const std::vector<int32_t>& prompt,
                                  const model::SamplingParams& sampling, int max_tokens,
                                  int32_t stop_token) {
  std::vector<int32_t> generated;
  std::vector<uint64_t> records(kToyLayers, kEmpty);
  uint16_t row[kHidden], answers[kChosen * kHidden];
  int32_t experts[kChosen];
  float logits[kVocab];
  for (int position = 0;; ++position) {
    const auto at = static_cast<size_t>(position);
    const int32_t token = at < prompt.size() ? prompt[at] : generated[at - prompt.size()];
    uint64_t state = ToyEmbed(token, position);
    for (int layer = 0; layer < kToyLayers; ++layer) {
      state = records[layer] = ToyAttend(layer, records[layer], state);
      if (layer < kFirstExpertLayer) continue;
      ToyRow(state, row);
      ToyGate(state, expert_count, experts);
      for (int j = 0; j < kChosen; ++j) {
        worker::ToyExperts::Answer(layer, experts[j], row,
                                   std::span(answers).subspan(j * kHidden, kHidden));
      }
      state = ToyCombine(state, answers);
    }
    if (at + 1 < prompt.size()) continue;
    ToyLogits(state, logits);
    generated.push_back(model::SampleToken(logits, sampling, prompt, generated));
    if (generated.back() == stop_token || static_cast<int>(generated.size()) == max_tokens) {
      return generated;
    }
  }
}

SimModel::SimModel(model::ExpertExchange& exchange, int expert_count, int page_count,
                   std::function<void(std::string)> fault)
    : exchange_(exchange),
      fault_(std::move(fault)),
      expert_count_(expert_count),
      page_count_(page_count),
      records_(static_cast<size_t>(kToyLayers) * page_count * kPageTokens, kEmpty) {}

void SimModel::ErasePage(int32_t page) {
  for (int layer = 0; layer < kToyLayers; ++layer) {
    std::fill_n(records_.begin() + (layer * page_count_ + page) * kPageTokens, kPageTokens, kEmpty);
  }
}

void SimModel::Begin(const kernels::StepPlan& plan) {
  CHECK(plan_ == nullptr);
  plan_ = &plan;
  layer_ = 0;
  stage_ = Stage::kAttention;
  states_.clear();
  for (int row = 0; row < plan.rows(); ++row) {
    states_.push_back(ToyEmbed(plan.token_ids[row], plan.positions[row]));
  }
}

absl::StatusOr<worker::TokenModel::Progress> SimModel::Advance() {
  waiting_ = false;
  switch (stage_) {
    case Stage::kAttention:
      Attend();
      break;
    case Stage::kBegin:
      BeginExchange();
      stage_ = Stage::kShared;
      break;
    case Stage::kShared:
      stage_ = Stage::kFinish;
      break;
    case Stage::kFinish:
      waiting_ = !exchange_.Ready(ticket_);
      if (waiting_) return Progress::kWaiting;
      if (absl::Status status = FinishExchange(); !status.ok()) {
        plan_ = nullptr;
        return status;
      }
      NextLayer();
      break;
    case Stage::kHead:
      logits_.resize(plan_->logit_rows.size() * kVocab);
      for (size_t i = 0; i < plan_->logit_rows.size(); ++i) {
        ToyLogits(states_[plan_->logit_rows[i]], Logits(static_cast<int>(i)));
      }
      plan_ = nullptr;
      return Progress::kDone;
  }
  return Progress::kRunning;
}

void SimModel::Attend() {
  for (const kernels::SequenceRows& sequence : plan_->sequences) {
    const auto record = [&](int position) -> uint64_t& {
      const int page = plan_->pages.at(sequence.first_page + position / kPageTokens);
      return records_.at((layer_ * page_count_ + page) * kPageTokens + position % kPageTokens);
    };
    for (int i = 0; i < sequence.row_count; ++i) {
      const int position = sequence.first_position + i;
      const uint64_t before = position > 0 ? record(position - 1) : kEmpty;
      if (position > 0 && before == kEmpty) {
        fault_(absl::StrCat("layer ", layer_, " reads position ", position - 1,
                            ", which was never written"));
      }
      uint64_t& state = states_[sequence.first_row + i];
      state = record(position) = ToyAttend(layer_, before, state);
    }
  }
  if (layer_ < kFirstExpertLayer) return NextLayer();
  stage_ = Stage::kBegin;
}

kernels::Tensor SimModel::Out() {
  return {kernels::DType::kBF16, static_cast<int64_t>(states_.size()) * kChosen, kHidden,
          answers_.data()};
}

void SimModel::BeginExchange() {
  const auto rows = states_.size();
  rows_.resize(rows * kHidden);
  experts_.resize(rows * kChosen);
  answers_.assign(rows * kChosen * kHidden, 0);
  for (size_t row = 0; row < rows; ++row) {
    ToyRow(states_[row], std::span(rows_).subspan(row * kHidden, kHidden));
    ToyGate(states_[row], expert_count_, std::span(experts_).subspan(row * kChosen, kChosen));
  }
  const auto count = static_cast<int64_t>(rows);
  ticket_ = exchange_.Begin({.layer = layer_,
                             .rows = {kernels::DType::kBF16, count, kHidden, rows_.data()},
                             .experts = {kernels::DType::kI32, count, kChosen, experts_.data()},
                             .out = Out(),
                             .decode = plan_->decodes()});
}

absl::Status SimModel::FinishExchange() {
  const absl::Status status = exchange_.Finish(ticket_, Out());
  for (size_t row = 0; row < states_.size(); ++row) {
    const auto answers = std::span(answers_).subspan(row * kChosen * kHidden, kChosen * kHidden);
    states_[row] = ToyCombine(states_[row], answers);
  }
  return status;
}

void SimModel::NextLayer() {
  ++layer_;
  stage_ = layer_ < kToyLayers ? Stage::kAttention : Stage::kHead;
}

void SimExperts::Order(worker::ExpertOrder order) {
  std::erase_if(held_, [&](const worker::ExpertName& name) {
    if (order.wanted.contains(name)) return false;
    toy_.Drop(name.layer, name.expert);
    return true;
  });
  order_ = std::move(order);
  due_ = clock_.Now() + load_time_;
}

std::optional<worker::ExpertOutcome> SimExperts::Advance() {
  if (!order_) return std::nullopt;
  worker::ExpertOutcome outcome{.order = order_->order};
  if (static_cast<int>(order_->wanted.size()) > slots_) {
    outcome.status = absl::ResourceExhaustedError("more experts than slots");
    order_.reset();
    return outcome;
  }
  for (const auto& [name, proof] : order_->wanted) {
    if (held_.contains(name)) continue;
    if (clock_.Now() < due_) return std::nullopt;
    toy_.Hold(name.layer, name.expert);
    held_.insert(name);
    ++loaded_;
    due_ = clock_.Now() + load_time_;
    return std::nullopt;
  }
  for (const auto& [name, proof] : order_->wanted) {
    outcome.proofs[name] = Mix(name.layer, name.expert) | 1;
  }
  order_.reset();
  return outcome;
}

}  // namespace epic::sim
