#include "worker/service/worker_service.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "base/sim_loop.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/testing/start.h"
#include "worker/testing/toy_model.h"

namespace epic::worker {
namespace {

using ::testing::HasSubstr;

constexpr int kVocab = 61;
constexpr int kMaxModelLen = 640;

using Tokens = std::vector<int32_t>;

class RecordingLink : public cluster::ControlLink {
 public:
  void Send(v1::ControlMessage message) override { messages.push_back(std::move(message)); }
  std::vector<v1::ControlMessage> messages;
};

struct WorldOptions {
  int page_count = 64;
  SchedulerLimits scheduler{.max_num_batched_tokens = 64, .max_num_seqs = 8, .max_logit_rows = 8};
  bool serve = true;
};

// A worker as its coordinator sees it.
class World {
 public:
  explicit World(const WorldOptions& options = {})
      : model(kVocab, options.page_count),
        pages(options.page_count, [this](int32_t page) { model.ErasePage(page); }),
        engine({.scheduler = options.scheduler, .max_model_len = kMaxModelLen}, model, pages),
        service(clock) {
    service.Connect(&link);
    if (options.serve) Serve();
  }

  void Serve() {
    v1::WorkerReady ready;
    ready.set_profile("toy");
    service.Serve(engine, ready);
  }

  void Start(const v1::StartSequence& start) {
    v1::ControlMessage message;
    *message.mutable_start() = start;
    service.OnMessage(message);
  }

  void End(uint64_t sequence, uint32_t attempt) {
    v1::ControlMessage message;
    message.mutable_end()->set_sequence(sequence);
    message.mutable_end()->set_attempt(attempt);
    service.OnMessage(message);
  }

  void Drain() {
    v1::ControlMessage message;
    message.mutable_drain();
    service.OnMessage(message);
  }

  void RunSteps(int count) {
    for (; count > 0 && service.busy(); --count) service.Advance();
  }

  void Run() {
    for (int step = 0; service.busy(); ++step) {
      ASSERT_LT(step, 100'000);
      service.Advance();
      ASSERT_TRUE(pages.CheckIntegrity().ok()) << pages.CheckIntegrity();
    }
  }

  std::vector<v1::SequenceToken> TokensOf(uint64_t sequence, uint32_t attempt = 1) const {
    std::vector<v1::SequenceToken> tokens;
    for (const v1::ControlMessage& message : link.messages) {
      for (const v1::SequenceToken& token : message.step().tokens()) {
        if (token.sequence() == sequence && token.attempt() == attempt) tokens.push_back(token);
      }
    }
    return tokens;
  }

  Tokens IdsOf(uint64_t sequence, uint32_t attempt = 1) const {
    Tokens ids;
    for (const v1::SequenceToken& token : TokensOf(sequence, attempt)) ids.push_back(token.token());
    return ids;
  }

  std::vector<v1::PromptScored> Prompts() const {
    std::vector<v1::PromptScored> prompts;
    for (const v1::ControlMessage& message : link.messages) {
      for (const v1::PromptScored& prompt : message.step().prompts()) prompts.push_back(prompt);
    }
    return prompts;
  }

  std::vector<v1::SequenceFailed> Failed() const {
    std::vector<v1::SequenceFailed> failed;
    for (const v1::ControlMessage& message : link.messages) {
      if (message.has_sequence_failed()) failed.push_back(message.sequence_failed());
    }
    return failed;
  }

  v1::StepReport LastReport() const {
    v1::StepReport report;
    for (const v1::ControlMessage& message : link.messages) {
      if (message.has_step()) report = message.step();
    }
    return report;
  }

  SimLoop clock;
  ToyModel model;
  PageLedger pages;
  Engine engine;
  RecordingLink link;
  WorkerService service;
};

Tokens Numbers(int count, int first = 0) {
  Tokens tokens(count);
  for (int i = 0; i < count; ++i) tokens[i] = (first + i * 7) % kVocab;
  return tokens;
}

Tokens Alone(const v1::StartSequence& start) {
  World world;
  world.Start(start);
  world.Run();
  return world.IdsOf(start.sequence(), start.attempt());
}

TEST(WorkerServiceTest, IntroducesItselfAndReportsLoading) {
  World world({.serve = false});
  for (int64_t bytes = 0; bytes <= 1000; ++bytes) world.service.ReportLoading(bytes, 1000);
  ASSERT_EQ(world.link.messages.size(), 101);
  EXPECT_EQ(world.link.messages.back().load_progress().loaded_bytes(), 1000);
  world.Serve();
  EXPECT_EQ(world.link.messages.back().ready().profile(), "toy");

  RecordingLink next;
  world.service.Connect(&next);
  ASSERT_EQ(next.messages.size(), 1);
  EXPECT_EQ(next.messages[0].ready().profile(), "toy");
}

TEST(WorkerServiceTest, GeneratesUpToMaxTokensWithOneReportAStep) {
  World world;
  world.Start(NewStart(5, Numbers(100), 10));
  world.Run();
  const std::vector<v1::SequenceToken> tokens = world.TokensOf(5);
  ASSERT_EQ(tokens.size(), 10);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(tokens[i].position(), i);
    EXPECT_EQ(tokens[i].finish_reason(), i < 9 ? 0 : v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(tokens[i].logprob(), 0);
  }
  const v1::StepReport last = world.LastReport();
  EXPECT_EQ(last.step(), 11);  // the prompt of 100 goes in two chunks of at most 64
  EXPECT_EQ(world.link.messages.size(), 1 + 11);
  EXPECT_EQ(last.running(), 0);
  EXPECT_EQ(last.kv_pages_used(), 0);
  EXPECT_EQ(last.prompt_tokens_computed(), 100);
  EXPECT_EQ(last.rows(), 1);
  ASSERT_EQ(world.Prompts().size(), 1);
  EXPECT_EQ(world.Prompts()[0].sequence(), 5);
}

TEST(WorkerServiceTest, GivesTheSameTokensAloneMixedPreemptedOrResumedFromForcedTokens) {
  std::vector<v1::StartSequence> starts;
  for (uint64_t sequence = 1; sequence <= 12; ++sequence) {
    starts.push_back(NewStart(sequence, Numbers(20 + 9 * sequence, sequence), 150));
    starts.back().mutable_sampling()->set_presence_penalty(0.5);
    starts.back().mutable_sampling()->set_repetition_penalty(1.1);
    starts.back().mutable_sampling()->set_top_p(0.9);
  }
  World mixed({.page_count = 12});
  for (const v1::StartSequence& start : starts) {
    mixed.Start(start);
    mixed.RunSteps(3);
  }
  mixed.Run();
  EXPECT_GT(mixed.LastReport().preemptions(), 0);
  EXPECT_GT(mixed.engine.replayed_rows(), 0);
  for (const v1::StartSequence& start : starts) {
    const Tokens alone = Alone(start);
    ASSERT_EQ(alone.size(), 150);
    EXPECT_EQ(mixed.IdsOf(start.sequence()), alone);
    v1::StartSequence resumed = start;
    const int known = static_cast<int>(start.sequence() * 11);
    resumed.set_attempt(2);
    resumed.mutable_forced()->Assign(alone.begin(), alone.begin() + known);
    World world;
    world.Start(resumed);
    world.Run();
    EXPECT_EQ(world.IdsOf(start.sequence(), 2), Tokens(alone.begin() + known, alone.end()));
    EXPECT_EQ(world.TokensOf(start.sequence(), 2).front().position(), known);
    EXPECT_EQ(world.engine.replayed_rows(), known - 1);
  }
}

TEST(WorkerServiceTest, RepeatsWithASeedAndDiffersWithAnotherSeedOrChoice) {
  const v1::StartSequence start = NewStart(1, Numbers(10), 50);
  v1::StartSequence other_seed = start;
  other_seed.mutable_sampling()->set_seed(99);
  v1::StartSequence other_choice = start;
  other_choice.set_choice(1);
  v1::StartSequence greedy = start;
  greedy.mutable_sampling()->set_temperature(0);
  v1::StartSequence greedy_other_seed = other_seed;
  greedy_other_seed.mutable_sampling()->set_temperature(0);
  EXPECT_EQ(Alone(start), Alone(start));
  EXPECT_NE(Alone(start), Alone(other_seed));
  EXPECT_NE(Alone(start), Alone(other_choice));
  EXPECT_EQ(Alone(greedy), Alone(greedy_other_seed));
}

TEST(WorkerServiceTest, EndsAtAStopTokenButNotBeforeMinTokens) {
  v1::StartSequence start = NewStart(1, Numbers(10), 50);
  const Tokens free = Alone(start);
  const int32_t stop = free[4];
  const auto first = std::ranges::find(free, stop) - free.begin();
  start.add_stop_token_ids(stop);
  World world;
  world.Start(start);
  world.Run();
  ASSERT_EQ(world.TokensOf(1).size(), first + 1);
  EXPECT_EQ(world.TokensOf(1).back().finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(world.TokensOf(1).back().token(), stop);

  start.set_min_tokens(20);
  const Tokens later = Alone(start);
  EXPECT_GE(later.size(), 20);
  for (int i = 0; i < 20; ++i) EXPECT_NE(later[i], stop) << i;
}

TEST(WorkerServiceTest, EndsAtTheContextLimitWithLength) {
  World world;
  world.Start(NewStart(1, Numbers(kMaxModelLen - 5), 1000));
  world.Run();
  ASSERT_EQ(world.TokensOf(1).size(), 5);
  EXPECT_EQ(world.TokensOf(1).back().finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST(WorkerServiceTest, GivesLogProbabilitiesThatSumToOne) {
  World world;
  v1::StartSequence start = NewStart(1, Numbers(10), 5);
  start.set_logprobs(kVocab);
  world.Start(start);
  world.Run();
  for (const v1::SequenceToken& token : world.TokensOf(1)) {
    ASSERT_EQ(token.top_size(), kVocab);
    double sum = 0;
    for (int i = 0; i < kVocab; ++i) {
      sum += std::exp(token.top(i).logprob());
      if (i > 0) {
        EXPECT_LE(token.top(i).logprob(), token.top(i - 1).logprob());
      }
      if (token.top(i).token_id() == token.token()) {
        EXPECT_EQ(token.top(i).logprob(), token.logprob());
      }
    }
    EXPECT_NEAR(sum, 1, 1e-4);
  }
}

TEST(WorkerServiceTest, ScoresEachPromptTokenOnceWhateverTheChunks) {
  const Tokens prompt = Numbers(90);
  std::vector<std::string> scores;
  for (int logit_rows : {2, 7, 100}) {
    World world(
        {.scheduler = {
             .max_num_batched_tokens = 40, .max_num_seqs = 2, .max_logit_rows = logit_rows}});
    v1::StartSequence start = NewStart(1, prompt, 3);
    start.set_logprobs(2);
    start.set_prompt_logprobs(true);
    world.Start(start);
    world.Run();
    ASSERT_EQ(world.Prompts().size(), 1);
    const v1::PromptScored scored = world.Prompts()[0];
    ASSERT_EQ(scored.prompt_logprobs_size(), 89);
    for (int i = 0; i < 89; ++i) {
      EXPECT_EQ(scored.prompt_logprobs(i).token(), prompt[i + 1]);
      EXPECT_EQ(scored.prompt_logprobs(i).position(), i + 1);
      EXPECT_LT(scored.prompt_logprobs(i).logprob(), 0);
      EXPECT_EQ(scored.prompt_logprobs(i).top_size(), 2);
    }
    scores.push_back(scored.SerializeAsString());
  }
  EXPECT_EQ(scores[0], scores[1]);
  EXPECT_EQ(scores[0], scores[2]);
}

TEST(WorkerServiceTest, ScoresAPromptAsTheSamplerWouldHaveAndOnlyOnceUnderPreemption) {
  v1::StartSequence start = NewStart(1, Numbers(50), 20);
  start.set_logprobs(0);
  World generated;
  generated.Start(start);
  generated.Run();
  v1::StartSequence echo = start;
  for (int32_t token : generated.IdsOf(1)) echo.add_prompt(token);
  echo.set_sequence(9);
  echo.set_max_tokens(150);
  echo.set_prompt_logprobs(true);
  World world(
      {.page_count = 6,
       .scheduler = {.max_num_batched_tokens = 64, .max_num_seqs = 2, .max_logit_rows = 9}});
  world.Start(NewStart(2, Numbers(70), 200));
  world.Start(echo);
  world.Run();
  EXPECT_GT(world.LastReport().preemptions(), 0);
  for (const v1::PromptScored& scored : world.Prompts()) {
    if (scored.sequence() != 9) continue;
    ASSERT_EQ(scored.prompt_logprobs_size(), 69);
    for (int i = 0; i < 20; ++i) {
      EXPECT_EQ(scored.prompt_logprobs(49 + i).logprob(), generated.TokensOf(1)[i].logprob());
    }
  }
  EXPECT_EQ(world.Prompts().size(), 2);
  EXPECT_EQ(world.TokensOf(9).size(), 150);
}

TEST(WorkerServiceTest, CancellingFreesPagesAtAnyMomentAndTellsTheGauges) {
  World world;
  world.model.set_turns(4);
  world.Start(NewStart(1, Numbers(100), 300));
  world.RunSteps(25);  // in the middle of a step
  EXPECT_GT(world.pages.used_count(), 0);
  world.End(1, 1);
  world.End(1, 1);
  EXPECT_EQ(world.pages.used_count(), 0);
  world.Start(NewStart(2, Numbers(10), 5));
  world.Run();
  EXPECT_EQ(world.IdsOf(2), Alone(NewStart(2, Numbers(10), 5)));
  world.Start(NewStart(3, Numbers(10), 5));
  world.End(3, 1);
  EXPECT_FALSE(world.service.busy());
  EXPECT_EQ(world.LastReport().waiting(), 0);
  EXPECT_TRUE(world.TokensOf(3).empty());
}

TEST(WorkerServiceTest, AHigherAttemptReplacesAndALowerOneIsIgnored) {
  v1::StartSequence start = NewStart(1, Numbers(10), 30);
  World world;
  start.set_attempt(2);
  world.Start(start);
  world.RunSteps(3);
  v1::StartSequence lower = start;
  lower.set_attempt(1);
  world.Start(lower);
  world.Start(start);
  world.End(1, 1);
  world.RunSteps(3);
  v1::StartSequence higher = start;
  higher.set_attempt(3);
  world.Start(higher);
  world.Run();
  const Tokens alone = Alone(NewStart(1, Numbers(10), 30));
  EXPECT_TRUE(world.TokensOf(1, 1).empty());
  EXPECT_EQ(world.IdsOf(1, 2), Tokens(alone.begin(), alone.begin() + 6));
  EXPECT_EQ(world.IdsOf(1, 3), alone);
}

TEST(WorkerServiceTest, RefusesBadSequencesByFieldValueAndLimitAndHarmsNobody) {
  World world;
  const v1::StartSequence good = NewStart(1, Numbers(30), 40);
  world.Start(good);
  world.RunSteps(5);
  struct Case {
    std::function<void(v1::StartSequence&)> spoil;
    std::string message;
  };
  const std::vector<Case> cases = {
      {[](auto& start) { start.clear_prompt(); }, "prompt is empty"},
      {[](auto& start) { start.set_prompt(3, kVocab); }, "prompt[3] is token 61"},
      {[](auto& start) { start.set_prompt(0, -1); }, "prompt[0] is token -1"},
      {[](auto& start) { start.add_forced(1000); }, "forced[0] is token 1000"},
      {[](auto& start) { start.add_stop_token_ids(-7); }, "stop_token_ids[0] is token -7"},
      {[](auto& start) { start.set_max_tokens(0); }, "max_tokens is 0"},
      {[](auto& start) { start.set_max_tokens(-3); }, "max_tokens is -3"},
      {[](auto& start) { start.set_min_tokens(500); }, "min_tokens is 500"},
      {[](auto& start) { start.set_logprobs(-2); }, "logprobs is -2"},
      {[](auto& start) { start.set_weights_id(256); }, "weights_id is 256; this world has only 0"},
      {[](auto& start) { start.set_logprobs(kVocab + 1); }, "logprobs is 62"},
      {[](auto& start) { start.mutable_sampling()->set_temperature(-1); }, "temperature"},
      {[](auto& start) { start.mutable_sampling()->set_top_p(0); }, "top_p"},
      {[](auto& s) { s.mutable_sampling()->set_repetition_penalty(0); }, "repetition_penalty"},
      {[](auto& start) {
         for (int i = 0; i < kMaxModelLen; ++i) start.add_prompt(1);
       },
       "max_model_len 640"},
  };
  uint64_t sequence = 100;
  for (const Case& each : cases) {
    v1::StartSequence bad = NewStart(++sequence, Numbers(10), 20);
    each.spoil(bad);
    world.Start(bad);
    ASSERT_EQ(world.Failed().size(), sequence - 100) << each.message;
    const v1::SequenceFailed failed = world.Failed().back();
    EXPECT_EQ(failed.sequence(), sequence);
    EXPECT_EQ(failed.attempt(), 1);
    EXPECT_NE(failed.code(), 0);
    EXPECT_THAT(failed.message(), HasSubstr(each.message));
  }
  world.Run();
  EXPECT_EQ(world.IdsOf(1), Alone(good));
}

TEST(WorkerServiceTest, RefusesWhatThePoolCanNeverHold) {
  World world({.page_count = 2});
  world.Start(NewStart(1, Numbers(100), 100));
  ASSERT_EQ(world.Failed().size(), 1);
  EXPECT_EQ(world.Failed()[0].code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(world.Failed()[0].message(), HasSubstr("need 4 KV pages"));
}

TEST(WorkerServiceTest, ANanEndsItsOwnSequenceAlone) {
  World world;
  world.model.set_faulty_token(60);
  const v1::StartSequence good = NewStart(1, Tokens(30, 1), 1);
  v1::StartSequence bad = NewStart(2, Tokens(30, 2), 40);
  bad.set_prompt(17, 60);
  world.Start(good);
  world.Start(bad);
  world.Run();
  ASSERT_EQ(world.Failed().size(), 1);
  EXPECT_EQ(world.Failed()[0].sequence(), 2);
  EXPECT_THAT(world.Failed()[0].message(), HasSubstr("NaN"));
  EXPECT_TRUE(world.TokensOf(2).empty());
  EXPECT_EQ(world.TokensOf(1).size(), 1);
  EXPECT_EQ(world.pages.used_count(), 0);
}

TEST(WorkerServiceTest, AFailedStepEndsItsSequencesAndTheNextOnesRun) {
  World world;
  world.Start(NewStart(1, Numbers(10), 5));
  world.model.set_error(absl::DataLossError("rank 3 is gone"));
  world.RunSteps(1);
  ASSERT_EQ(world.Failed().size(), 1);
  EXPECT_EQ(world.Failed()[0].message(), "rank 3 is gone");
  EXPECT_FALSE(world.service.busy());
  world.Start(NewStart(2, Numbers(10), 5));
  world.Run();
  EXPECT_EQ(world.IdsOf(2), Alone(NewStart(2, Numbers(10), 5)));
}

TEST(WorkerServiceTest, DrainFinishesWhatIsHereAndTakesNothingNew) {
  World world;
  world.Start(NewStart(1, Numbers(10), 5));
  world.Drain();
  EXPECT_FALSE(world.service.drained());
  world.Start(NewStart(2, Numbers(10), 5));
  ASSERT_EQ(world.Failed().size(), 1);
  EXPECT_EQ(world.Failed()[0].code(), static_cast<int>(absl::StatusCode::kUnavailable));
  world.Run();
  EXPECT_EQ(world.TokensOf(1).size(), 5);
  EXPECT_TRUE(world.service.drained());
}

TEST(WorkerServiceTest, ANewCoordinatorFindsAWorkerWithoutSequences) {
  World world;
  world.Start(NewStart(1, Numbers(10), 50));
  world.RunSteps(5);
  world.service.Connect(nullptr);
  EXPECT_FALSE(world.service.busy());
  EXPECT_EQ(world.pages.used_count(), 0);
  world.service.Connect(&world.link);
  v1::StartSequence again = NewStart(1, Numbers(10), 50);
  again.set_attempt(1);
  const size_t before = world.TokensOf(1).size();
  world.Start(again);
  world.Run();
  EXPECT_EQ(world.TokensOf(1).size(), before + 50);
}

TEST(WorkerServiceTest, RefusesSequencesWhileLoading) {
  World world({.serve = false});
  world.Start(NewStart(1, Numbers(10), 5));
  ASSERT_EQ(world.Failed().size(), 1);
  EXPECT_THAT(world.Failed()[0].message(), HasSubstr("loading"));
}

}  // namespace
}  // namespace epic::worker
