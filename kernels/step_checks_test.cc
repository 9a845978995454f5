// Mistakes of callers end the process before anything is read or written, in every backend alike.
#include "kernels/step_checks.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/reference/reference_backend.h"
#include "kernels/testing/toy_model.h"

namespace epic::kernels {
namespace {

constexpr int kHidden = 32;

// Two rows of one sequence, which has one page.
StepPlan Plan() {
  return {.token_ids = {1, 2},
          .positions = {5, 6},
          .row_sequence = {0, 0},
          .sequences = {{.row_count = 2, .first_position = 5}},
          .pages = {3},
          .logit_rows = {1}};
}

class StepChecksDeathTest : public testing::TestWithParam<bool> {
 protected:
  StepChecksDeathTest()
      : backend_(GetParam() ? MakeReferenceBackend({}) : MakeCpuBackend({.threads = 1}).backend),
        weight_(random_, DType::kBF16, kHidden, kHidden),
        mlp_(backend_->LoadMlp(weight_.source(), weight_.source(), weight_.source())),
        memory_(backend_->Allocate(1 << 16, MemoryUse::kHost)) {}

  Tensor Of(DType dtype, int64_t rows, int64_t cols) const {
    return {dtype, rows, cols, memory_->data()};
  }
  void Experts(std::vector<ExpertRow> pairs, int64_t cols = kHidden) const {
    const Mlp* experts[] = {mlp_.get(), nullptr};
    backend_->Experts(experts, Of(DType::kBF16, 2, cols), pairs,
                      Of(DType::kBF16, std::ssize(pairs), cols));
  }

  Random random_{1};
  const std::unique_ptr<Backend> backend_;
  ToyMatrix weight_;
  const std::unique_ptr<Mlp> mlp_;
  const std::unique_ptr<Memory> memory_;
};

TEST_P(StepChecksDeathTest, PlansFitTogether) {
  backend_->BeginStep(Plan(), {});
  StepPlan plan = Plan();
  plan.positions[1] = 5;
  EXPECT_DEATH(backend_->BeginStep(plan, {}), "plan.positions.*5 against 6");
  plan = Plan();
  plan.pages.clear();
  EXPECT_DEATH(backend_->BeginStep(plan, {}), "step_checks.cc.*pages");
  plan = Plan();
  plan.logit_rows = {2};
  EXPECT_DEATH(backend_->BeginStep(plan, {}), "last < plan.rows\\(\\) \\(2 against 2\\)");
}

TEST_P(StepChecksDeathTest, PagesAreOfTheCache) {
  const AttentionShape shape = SmallToyShape().attention;
  StepChecks checks(KvType::kBF16);
  checks.Begin(Plan(), {.inverse_frequency = std::vector<double>(shape.rope_dim / 2)});
  std::byte* slabs[] = {memory_->data()};
  KvView kv = {{shape.kv_rank, shape.rope_dim}, slabs, 4};
  const Tensor residual = Of(DType::kF32, 2, shape.hidden);
  const Tensor query = Of(DType::kBF16, 2, shape.heads * (shape.kv_rank + shape.rope_dim));
  checks.AttentionIn(shape, Plan(), kv, 0, residual, query);
  EXPECT_DEATH(checks.AttentionIn(shape, Plan(), kv, 1, residual, query), "layer 1 of 1");
  kv.page_count = 3;
  EXPECT_DEATH(checks.AttentionIn(shape, Plan(), kv, 0, residual, query), "4 against 3");
}

TEST_P(StepChecksDeathTest, PairsNameRowsAndExpertsThatAreThere) {
  Experts({{0, 0}, {1, 0}});
  EXPECT_DEATH(Experts({{2, 0}}), "row 2 of 2");
  EXPECT_DEATH(Experts({{0, 2}}), "expert 2 of 2");
  EXPECT_DEATH(Experts({{0, 1}}), "expert 1");
  EXPECT_DEATH(Experts({{0, 0}}, 2 * kHidden), "hidden.*32 against 64");
}

TEST_P(StepChecksDeathTest, TensorsHaveTheirTypesAndShapes) {
  const Tensor rows = Of(DType::kBF16, 2, kHidden);
  EXPECT_DEATH(backend_->ApplyMlp(*mlp_, Of(DType::kF32, 2, kHidden), rows), "dtype");
  EXPECT_DEATH(backend_->ApplyMlp(*mlp_, rows, Of(DType::kBF16, 1, kHidden)), "1 against 2");
}

TEST_P(StepChecksDeathTest, HandlesAreOfTheirBackend) {
  const auto other = GetParam() ? MakeCpuBackend({.threads = 1}).backend : MakeReferenceBackend({});
  const Tensor rows = Of(DType::kBF16, 2, kHidden);
  EXPECT_DEATH(other->ApplyMlp(*mlp_, rows, rows), "a handle of another backend");
}

INSTANTIATE_TEST_SUITE_P(Backends, StepChecksDeathTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "Reference" : "Cpu"; });

}  // namespace
}  // namespace epic::kernels
