#include "model/step.h"

#include <cstring>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/reference_backend.h"
#include "model/idle_step.h"
#include "model/local_exchange.h"
#include "model/testing/tiny_checkpoint.h"

namespace epic::model {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using Rows = std::vector<std::vector<float>>;

// Is not ready for `delay` questions after each Begin, and fails when told to.
class SlowExchange : public ExpertExchange {
 public:
  SlowExchange(const Model& model, kernels::Backend& backend, int delay)
      : local_(model, backend), delay_(delay) {}

  Ticket Begin(const ExpertDispatch& dispatch) override {
    const Ticket ticket = local_.Begin(dispatch);
    left_[ticket] = delay_;
    ++begun_;
    open_max_ = std::max(open_max_, ++open_);
    return ticket;
  }
  bool Ready(Ticket ticket) override { return left_[ticket]-- <= 0; }
  absl::Status Finish(Ticket ticket, kernels::Tensor out) override {
    --open_;
    if (begun_ == fails_at_) return absl::UnavailableError("rank 3 is gone");
    return local_.Finish(ticket, out);
  }

  void FailAt(int begun) { fails_at_ = begun; }
  int begun() const { return begun_; }
  int open_max() const { return open_max_; }

 private:
  LocalExchange local_;
  int delay_;
  int left_[2] = {};
  int begun_ = 0, open_ = 0, open_max_ = 0, fails_at_ = -1;
};

class StepTest : public testing::Test {
 protected:
  StepTest() { LoadModel(TinyTensors(TinyConfig(), 4), {}); }

  void LoadModel(const TestTensors& tensors, const LoadOptions& options) {
    const std::string folder = WriteCheckpoint(TinyConfig(), tensors);
    const auto checkpoint = Checkpoint::Open(folder);
    auto model = Model::Load(*ReadModelConfig(folder), **checkpoint, *backend_, options);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    slabs_.clear();
    pointers_.clear();
    for (int layer = 0; layer < 3; ++layer) {
      slabs_.push_back(backend_->Allocate(kPages * model_->kv_layout().page_bytes(),
                                          kernels::MemoryUse::kTraffic));
      pointers_.push_back(slabs_.back()->data());
    }
    kv_ = {model_->kv_layout(), pointers_, kPages};
  }

  // A sequence from its start, in the page given; logits of every row.
  static kernels::StepPlan PlanOf(const std::vector<int32_t>& tokens, int32_t page) {
    kernels::StepPlan plan;
    plan.token_ids = tokens;
    const auto rows = static_cast<int32_t>(tokens.size());
    for (int32_t i = 0; i < rows; ++i) {
      plan.positions.push_back(i);
      plan.row_sequence.push_back(0);
      plan.logit_rows.push_back(i);
    }
    plan.sequences = {{.row_count = rows}};
    plan.pages = {page};
    return plan;
  }

  Rows LogitsOf(const Step& step, const kernels::StepPlan& plan) const {
    Rows rows;
    for (int i = 0; i < plan.rows(); ++i) {
      rows.emplace_back(step.logits(i).begin(), step.logits(i).end());
    }
    return rows;
  }

  Rows Compute(ExpertExchange& exchange, const std::vector<int32_t>& tokens) {
    return Compute(exchange, PlanOf(tokens, 0));
  }

  Rows Compute(ExpertExchange& exchange, const kernels::StepPlan& plan) {
    StepBuffers buffers(model_->config(), *backend_, plan.rows(), plan.rows());
    Step step(*model_, *backend_, exchange, kv_, plan, buffers);
    step.set_attend_pairs_max(attend_pairs_max_);
    stages_ = 0;
    while (true) {
      ++stages_;
      const auto progress = step.Advance();
      if (!progress.ok()) {
        error_ = progress.status();
        return {};
      }
      if (*progress == Step::Progress::kWaiting) ++waits_;
      if (*progress == Step::Progress::kDone) break;
    }
    faults_.assign(step.faults().begin(), step.faults().end());
    return LogitsOf(step, plan);
  }

  static constexpr int kPages = 2;
  std::unique_ptr<kernels::Backend> backend_ = kernels::MakeReferenceBackend({});
  std::unique_ptr<Model> model_;
  std::vector<std::unique_ptr<kernels::Memory>> slabs_;
  std::vector<std::byte*> pointers_;
  kernels::KvView kv_;
  int64_t attend_pairs_max_ = std::numeric_limits<int64_t>::max();
  int stages_ = 0;
  int waits_ = 0;
  std::vector<uint8_t> faults_;
  absl::Status error_;
};

const std::vector<int32_t> kTokens = {3, 141, 59, 26, 53};

TEST_F(StepTest, StopsUntilTheExchangeIsReadyAndGoesOnWithTheSameBits) {
  LocalExchange local(*model_, *backend_);
  const Rows expected = Compute(local, kTokens);
  ASSERT_EQ(expected.size(), 5);
  EXPECT_EQ(waits_, 0);
  SlowExchange slow(*model_, *backend_, 3);
  EXPECT_TRUE(Compute(slow, kTokens) == expected);
  EXPECT_EQ(slow.begun(), 2);
  EXPECT_EQ(waits_, 6);
}

TEST_F(StepTest, AnIdleStepMakesTheSameExchangesWithoutRows) {
  struct Recorder : SlowExchange {
    using SlowExchange::SlowExchange;
    Ticket Begin(const ExpertDispatch& dispatch) override {
      layers.push_back(dispatch.layer);
      rows += dispatch.rows.rows + dispatch.experts.rows;
      return SlowExchange::Begin(dispatch);
    }
    std::vector<int> layers;
    int64_t rows = 0;
  };
  Recorder busy(*model_, *backend_, 0);
  Compute(busy, kTokens);
  Recorder idle(*model_, *backend_, 2);
  IdleStep step(model_->config(), idle);
  int waits = 0;
  while (true) {
    const auto progress = step.Advance();
    ASSERT_TRUE(progress.ok()) << progress.status();
    if (*progress == Step::Progress::kWaiting) ++waits;
    if (*progress == Step::Progress::kDone) break;
  }
  EXPECT_EQ(idle.layers, busy.layers);
  EXPECT_EQ(idle.rows, 0);
  EXPECT_EQ(waits, 4);
  Recorder failing(*model_, *backend_, 0);
  failing.FailAt(1);
  IdleStep fails(model_->config(), failing);
  absl::Status status;
  while (status.ok()) status = fails.Advance().status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 3 is gone"));
}

TEST_F(StepTest, TellsTheExchangeWhetherAllRowsAreDecodeRows) {
  struct Recorder : SlowExchange {
    using SlowExchange::SlowExchange;
    Ticket Begin(const ExpertDispatch& dispatch) override {
      decode = dispatch.decode;
      return SlowExchange::Begin(dispatch);
    }
    bool decode = false;
  };
  using enum kernels::RowRole;
  const std::pair<std::vector<kernels::RowRole>, bool> cases[] = {
      {{kDecode}, true}, {{kDecode, kDraft}, true}, {{kPrompt}, false}, {{kForced}, false},
      {{kPrompt, kForced, kDecode}, false}};
  for (const auto& [roles, decode] : cases) {
    kernels::StepPlan plan = PlanOf(std::vector<int32_t>(roles.size(), 3), 0);
    plan.roles = roles;
    Recorder exchange(*model_, *backend_, 0);
    Compute(exchange, plan);
    EXPECT_EQ(exchange.decode, decode) << roles.size();
  }
}

TEST_F(StepTest, TwoHalvesOfABatchTakeTurns) {
  LocalExchange local(*model_, *backend_);
  const std::vector<int32_t> other = {9, 8, 7};
  const Rows first_alone = Compute(local, kTokens);
  const Rows second_alone = Compute(local, other);

  // The backend serves one step's operations at a time, so each half has its own.
  const auto second_backend = kernels::MakeReferenceBackend({});
  SlowExchange exchange(*model_, *backend_, 1);
  const kernels::StepPlan plans[] = {PlanOf(kTokens, 0), PlanOf(other, 1)};
  StepBuffers first_buffers(model_->config(), *backend_, 5, 5);
  StepBuffers second_buffers(model_->config(), *second_backend, 3, 3);
  Step first(*model_, *backend_, exchange, kv_, plans[0], first_buffers);
  Step second(*model_, *second_backend, exchange, kv_, plans[1], second_buffers);
  bool done[] = {false, false};
  while (!done[0] || !done[1]) {
    for (int half = 0; half < 2; ++half) {
      if (done[half]) continue;
      const auto progress = (half == 0 ? first : second).Advance();
      ASSERT_TRUE(progress.ok()) << progress.status();
      done[half] = *progress == Step::Progress::kDone;
    }
  }
  EXPECT_EQ(exchange.open_max(), 2);
  EXPECT_TRUE(LogitsOf(first, plans[0]) == first_alone);
  EXPECT_TRUE(LogitsOf(second, plans[1]) == second_alone);
}

TEST_F(StepTest, AttentionInSlicesHasTheSameBits) {
  kernels::StepPlan plan = PlanOf(kTokens, 1);
  plan.pages.push_back(0);
  plan.sequences.push_back({.first_row = 5, .row_count = 3, .first_page = 1});
  for (int32_t i = 0; i < 3; ++i) {
    plan.token_ids.push_back(9 - i);
    plan.positions.push_back(i);
    plan.row_sequence.push_back(1);
    plan.logit_rows.push_back(5 + i);
  }
  LocalExchange local(*model_, *backend_);
  const Rows expected = Compute(local, plan);
  const int stages = stages_;
  attend_pairs_max_ = 4;  // rows 0-1, 2, 3, 4, 5-6, 7
  EXPECT_TRUE(Compute(local, plan) == expected);
  EXPECT_EQ(stages_, stages + 3 * 5);
  attend_pairs_max_ = 11;  // rows 0-3, 4-7
  EXPECT_TRUE(Compute(local, plan) == expected);
  EXPECT_EQ(stages_, stages + 3 * 1);
}

TEST_F(StepTest, AnErrorOfTheExchangeEndsTheStepAndTheNextOneIsWhole) {
  LocalExchange local(*model_, *backend_);
  const Rows expected = Compute(local, kTokens);
  SlowExchange slow(*model_, *backend_, 0);
  slow.FailAt(2);
  EXPECT_TRUE(Compute(slow, kTokens).empty());
  EXPECT_THAT(std::string(error_.message()), HasSubstr("rank 3 is gone"));
  EXPECT_TRUE(Compute(local, kTokens) == expected);
}

TEST_F(StepTest, NamesTheExpertThatIsNotLoaded) {
  LoadModel(TinyTensors(TinyConfig(), 4),
            {.wants_expert = [](int layer, int expert) { return layer == 1; }});
  LocalExchange local(*model_, *backend_);
  EXPECT_TRUE(Compute(local, kTokens).empty());
  EXPECT_THAT(std::string(error_.message()), HasSubstr("layer 2: expert"));
}

TEST_F(StepTest, ANaNIsThatRowsFaultAlone) {
  TestTensors tensors = TinyTensors(TinyConfig(), 4);
  LocalExchange whole(*model_, *backend_);
  const Rows expected = Compute(whole, kTokens);
  std::memset(tensors["model.embed_tokens.weight"].bytes.data() + 53 * 200, 0xff, 200);
  LoadModel(tensors, {});
  LocalExchange local(*model_, *backend_);
  const Rows logits = Compute(local, kTokens);
  EXPECT_THAT(faults_, testing::ElementsAre(0, 0, 0, 0, 1));
  for (int row = 0; row < 4; ++row) EXPECT_TRUE(logits[row] == expected[row]) << row;
}

TEST_F(StepTest, BuffersTakeWhatWasPlanned) {
  const int64_t one = StepBuffers::Bytes(model_->config(), *backend_, 1, 0);
  EXPECT_EQ(StepBuffers::Bytes(model_->config(), *backend_, 8, 0), 8 * one);
  EXPECT_EQ(StepBuffers::Bytes(model_->config(), *backend_, 8, 2), 8 * one + 2 * 157 * 4);
}

}  // namespace
}  // namespace epic::model
