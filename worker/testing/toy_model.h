// ToyModel: a TokenModel in place of the transformer, for tests of all that stands around it. Its
// "KV records" lie in pages, and a row's logits are an order-sensitive hash of all records before
// it: a row computed twice, missed, or read through a wrong page table changes the tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/engine/token_model.h"

namespace epic::worker {

class ToyModel : public TokenModel {
 public:
  ToyModel(int vocab_size, int page_count);

  // For PageLedger: a page leased again holds nothing of its last owner.
  void ErasePage(int32_t page);

  // Steps take `turns` calls of Advance, every other one kWaiting.
  void set_turns(int turns) { turns_ = turns; }
  // Rows of this token are faulty.
  void set_faulty_token(int32_t token) { faulty_token_ = token; }
  // The next step ends with this error.
  void set_error(absl::Status error) { error_ = std::move(error); }

  int vocab_size() const override { return vocab_size_; }
  void Begin(const kernels::StepPlan& plan) override;
  absl::StatusOr<Progress> Advance() override;
  std::span<float> Logits(int index) override;
  bool Fault(int row) const override;

  int64_t rows_computed() const { return rows_computed_; }

 private:
  void Compute();

  int vocab_size_;
  std::vector<uint64_t> records_;  // [page_count · kPageTokens]
  const kernels::StepPlan* plan_ = nullptr;
  std::vector<std::vector<float>> logits_;
  std::vector<bool> faulty_rows_;
  int turns_ = 1;
  int turn_ = 0;
  int32_t faulty_token_ = -1;
  absl::Status error_;
  int64_t rows_computed_ = 0;
};

}  // namespace epic::worker
