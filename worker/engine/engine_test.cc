#include "worker/engine/engine.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/threads/thread_pool.h"
#include "worker/kv/page_ledger.h"
#include "worker/testing/start.h"
#include "worker/testing/toy_model.h"

namespace epic::worker {
namespace {

constexpr int kVocab = 30000;
constexpr int kPages = 16;

// Draws on several threads.
class ParallelModel : public ToyModel {
 public:
  using ToyModel::ToyModel;
  void ForEach(int count, const std::function<void(int)>& task) override {
    calls_ += count;
    pool_.ForEach(count, task);
  }
  int calls() const { return calls_; }

 private:
  kernels::ThreadPool pool_{3, /*pin=*/false};
  int calls_ = 0;
};

v1::StartSequence Start(int id) {
  v1::StartSequence start = NewStart(id, {1, 2, id}, 3 + id % 3);
  start.mutable_sampling()->set_temperature(0.8f);
  start.mutable_sampling()->set_top_p(0.9f);
  if (id % 2 == 0) start.mutable_sampling()->set_top_k(50);
  start.set_logprobs(2);
  start.set_prompt_logprobs(id % 3 == 0);
  return start;
}

using Token = std::pair<int32_t, std::vector<int32_t>>;  // and the likeliest

// All tokens of `count` sequences that run side by side, those of scored prompts first.
std::map<uint64_t, std::vector<Token>> RunAll(ToyModel& model, int count) {
  PageLedger pages(kPages, [&](int32_t page) { model.ErasePage(page); });
  Engine engine({.max_model_len = 64}, model, pages);
  for (int id = 1; id <= count; ++id) EXPECT_TRUE(engine.Start(Start(id)).ok());
  std::map<uint64_t, std::vector<Token>> tokens;
  while (engine.busy()) {
    if (engine.Advance() != Engine::Progress::kStepDone) continue;
    const auto add = [&](const v1::SequenceToken& token) {
      std::vector<int32_t> top;
      for (const v1::TokenLogprob& likely : token.top()) top.push_back(likely.token_id());
      tokens[token.sequence()].emplace_back(token.token(), top);
    };
    for (const v1::PromptScored& prompt : engine.result().prompts) {
      std::ranges::for_each(prompt.prompt_logprobs(), add);
    }
    std::ranges::for_each(engine.result().tokens, add);
  }
  return tokens;
}

TEST(EngineTest, SequencesThatAreDrawnSideBySideGetTheTokensThatTheyGetAlone) {
  ToyModel plain(kVocab, kPages);
  ParallelModel parallel(kVocab, kPages);
  const auto expected = RunAll(plain, 5);
  EXPECT_EQ(RunAll(parallel, 5), expected);
  EXPECT_GT(parallel.calls(), 10);
  for (const auto& [id, tokens] : expected) {
    EXPECT_EQ(tokens.size(), 3 + id % 3 + (id % 3 == 0 ? 2 : 0)) << id;
  }
}

TEST(EngineTest, FewLogitsWakeNoThread) {
  ParallelModel model(200, kPages);
  EXPECT_EQ(RunAll(model, 5).size(), 5u);
  EXPECT_EQ(model.calls(), 0);
}

TEST(EngineTest, ASequenceThatIsStartedAnewDuringAStepGetsNothingOfTheOldOne) {
  ToyModel model(97, kPages);
  model.set_turns(4);
  PageLedger pages(kPages, [&](int32_t page) { model.ErasePage(page); });
  Engine engine({.max_model_len = 64}, model, pages);
  ASSERT_TRUE(engine.Start(Start(2)).ok());
  engine.Advance();
  engine.EndAll();
  v1::StartSequence anew = NewStart(2, {5, 6}, 4);
  ASSERT_TRUE(engine.Start(anew).ok());
  std::vector<int> positions;
  while (engine.busy()) {
    if (engine.Advance() != Engine::Progress::kStepDone) continue;
    for (const auto& token : engine.result().tokens) positions.push_back(token.position());
  }
  EXPECT_EQ(positions, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(pages.used_count(), 0);
}

}  // namespace
}  // namespace epic::worker
