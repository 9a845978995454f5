#include "worker/testing/toy_model.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "kernels/kv_view.h"
#include "worker/testing/mix.h"

namespace epic::worker {
namespace {

constexpr uint64_t kEmpty = 0;

}  // namespace

ToyModel::ToyModel(int vocab_size, int page_count)
    : vocab_size_(vocab_size), records_(page_count * kernels::kPageTokens, kEmpty) {}

void ToyModel::ErasePage(int32_t page) {
  std::fill_n(records_.begin() + page * kernels::kPageTokens, kernels::kPageTokens, kEmpty);
}

void ToyModel::Begin(const kernels::StepPlan& plan) {
  CHECK(plan_ == nullptr) << "a step is running";
  plan_ = &plan;
  turn_ = 0;
}

absl::StatusOr<TokenModel::Progress> ToyModel::Advance() {
  CHECK(plan_ != nullptr);
  if (!error_.ok()) {
    plan_ = nullptr;
    return std::exchange(error_, absl::OkStatus());
  }
  if (++turn_ < turns_) return turn_ % 2 == 0 ? Progress::kRunning : Progress::kWaiting;
  Compute();
  plan_ = nullptr;
  return Progress::kDone;
}

void ToyModel::Compute() {
  logits_.clear();
  std::vector<uint64_t> hashes;
  for (const kernels::SequenceRows& sequence : plan_->sequences) {
    const auto record = [&](int position) -> uint64_t& {
      const int page = plan_->pages.at(sequence.first_page + position / kernels::kPageTokens);
      return records_.at(page * kernels::kPageTokens + position % kernels::kPageTokens);
    };
    for (int i = 0; i < sequence.row_count; ++i) {
      const int row = sequence.first_row + i;
      const int position = sequence.first_position + i;
      CHECK_EQ(plan_->positions.at(row), position);
      record(position) = Mix(plan_->token_ids.at(row), position + 1) | 1;
      uint64_t hash = 0;
      for (int before = 0; before <= position; ++before) {
        CHECK_NE(record(before), kEmpty);
        hash = Mix(hash, record(before));
      }
      hashes.push_back(hash);
      ++rows_computed_;
    }
  }
  for (int32_t row : plan_->logit_rows) {
    std::vector<float>& logits = logits_.emplace_back(vocab_size_);
    for (int token = 0; token < vocab_size_; ++token) {
      logits[token] = static_cast<float>(Mix(hashes.at(row), token) >> 40) / (1 << 22) - 2.0f;
    }
  }
  faulty_rows_.assign(plan_->rows(), false);
  for (int row = 0; row < plan_->rows(); ++row) {
    faulty_rows_[row] = plan_->token_ids[row] == faulty_token_;
  }
}

std::span<float> ToyModel::Logits(int index) { return logits_.at(index); }

bool ToyModel::Fault(int row) const { return faulty_rows_.at(row); }

}  // namespace epic::worker
