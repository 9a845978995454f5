#include "worker/engine/engine.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/threads/thread_pool.h"
#include "worker/kv/page_ledger.h"
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

SequenceRequest Request(SequenceId id) {
  SequenceRequest request = {.id = id,
                             .prompt = {1, 2, static_cast<int32_t>(id)},
                             .sampling = {.temperature = 0.8f, .top_p = 0.9f, .seed = id},
                             .max_tokens = 3 + static_cast<int>(id) % 3,
                             .logprobs = 2};
  if (id % 2 == 0) request.sampling.top_k = 50;
  request.prompt_logprobs = id % 3 == 0;
  return request;
}

using Token = std::pair<int32_t, std::vector<int32_t>>;  // and the likeliest

// All tokens of `count` sequences that run side by side, those of scored prompts first.
std::map<SequenceId, std::vector<Token>> RunAll(ToyModel& model, int count) {
  PageLedger pages(kPages, [&](int32_t page) { model.ErasePage(page); });
  Engine engine({.max_model_len = 64}, model, pages);
  for (int id = 1; id <= count; ++id) EXPECT_TRUE(engine.Start(Request(id)).ok());
  std::map<SequenceId, std::vector<Token>> tokens;
  while (engine.busy()) {
    if (engine.Advance() != Engine::Progress::kStepDone) continue;
    const auto add = [&](const NewToken& token) {
      std::vector<int32_t> top;
      for (const v1::TokenLogprob& likely : token.top) top.push_back(likely.token_id());
      tokens[token.id].emplace_back(token.token, top);
    };
    for (const PromptScores& prompt : engine.result().prompts) {
      std::ranges::for_each(prompt.tokens, add);
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

}  // namespace
}  // namespace epic::worker
