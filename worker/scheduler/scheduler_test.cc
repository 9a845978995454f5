#include "worker/scheduler/scheduler.h"

#include <algorithm>
#include <map>

#include "base/sim_loop.h"
#include "gtest/gtest.h"
#include "worker/testing/toy_model.h"

namespace epic::worker {
namespace {

constexpr int kVocab = 97;

using Tokens = std::vector<int32_t>;

int32_t Greedy(std::span<const float> logits) {
  return static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
}

SequenceName Named(uint64_t id) { return {id, 1}; }

// A scheduler with a toy model: runs steps and draws the likeliest tokens.
class World {
 public:
  World(const SchedulerLimits& limits, int page_count)
      : model_(kVocab, page_count),
        ledger_(page_count, [this](int32_t page) { model_.ErasePage(page); }),
        limits_(limits),
        scheduler_(limits, ledger_) {}

  Scheduler& scheduler() { return scheduler_; }
  PageLedger& ledger() { return ledger_; }
  const std::map<uint64_t, Tokens>& finished() const { return finished_; }
  int64_t rows_computed() const { return model_.rows_computed(); }

  // `known`: what will be drawn; each draw then accepts more of it at once, up to `burst` tokens.
  void Add(uint64_t id, const Tokens& tokens, int length_max, int priority = 0,
           const Tokens& known = {}, int burst = 1) {
    known_[id] = known;
    bursts_[id] = burst;
    ASSERT_TRUE(scheduler_
                    .Add({.name = Named(id),
                          .length_max = length_max,
                          .priority = priority,
                          .tokens = tokens})
                    .ok());
  }

  // False if there was nothing to do.
  bool Step() {
    const Batch& batch = scheduler_.Plan();
    if (batch.empty()) {
      EXPECT_EQ(scheduler_.running() + scheduler_.waiting(), 0) << "stuck";
      return false;
    }
    EXPECT_LE(batch.plan.rows(), limits_.max_num_batched_tokens);
    EXPECT_LE(static_cast<int>(batch.plan.logit_rows.size()), limits_.max_logit_rows);
    EXPECT_LE(scheduler_.running(), limits_.max_num_seqs);
    EXPECT_TRUE(std::ranges::is_sorted(batch.plan.logit_rows));
    model_.Begin(batch.plan);
    EXPECT_EQ(*model_.Advance(), TokenModel::Progress::kDone);
    scheduler_.Commit();
    for (const BatchSequence& each : batch.sequences) {
      EXPECT_EQ(each.drawn_count > 0, scheduler_.Find(each)->remaining() == 0);
      if (each.drawn_count > 0) Draw(each);
    }
    EXPECT_TRUE(scheduler_.CheckIntegrity().ok()) << scheduler_.CheckIntegrity();
    return true;
  }

  void RunAll() {
    for (int step = 0; Step(); ++step) ASSERT_LT(step, 100'000);
  }

 private:
  void Draw(const BatchSequence& each) {
    const uint64_t id = each.name.sequence;
    const Sequence& sequence = *scheduler_.Find(each);
    Tokens next = {Greedy(model_.Logits(each.first_logit + each.scored_count))};
    const Tokens& known = known_.at(id);
    const int end = std::min(static_cast<int>(known.size()), sequence.length() + bursts_.at(id));
    for (int i = sequence.length() + 1; i < end; ++i) next.push_back(known[i]);
    scheduler_.Accept(each.name, next);
    if (sequence.length() < sequence.length_max) return;
    finished_[id] = sequence.tokens;
    scheduler_.Remove(each.name);
  }

  ToyModel model_;
  PageLedger ledger_;
  SchedulerLimits limits_;
  Scheduler scheduler_;
  std::map<uint64_t, Tokens> known_;
  std::map<uint64_t, int> bursts_;
  std::map<uint64_t, Tokens> finished_;
};

Tokens RandomTokens(SeededRandom& random, int count) {
  Tokens tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random.Next() % kVocab);
  return tokens;
}

Tokens Alone(const Tokens& prompt, int length_max) {
  World world({.max_num_batched_tokens = 4096, .max_num_seqs = 1, .max_logit_rows = 1}, 64);
  world.Add(1, prompt, length_max);
  world.RunAll();
  return world.finished().at(1);
}

TEST(SchedulerTest, GivesEachSequenceTheTokensItGetsAloneInAnyMixAndUnderPreemption) {
  int64_t preemptions = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SeededRandom random(seed);
    const auto below = [&](int n) { return static_cast<int>(random.Next() % n); };
    SchedulerLimits limits{.max_num_batched_tokens = 1 + below(150), .max_num_seqs = 1 + below(9)};
    limits.max_logit_rows = limits.max_num_seqs + below(20);
    World world(limits, 6 + below(8));
    std::map<uint64_t, Tokens> expected;
    for (uint64_t id = 1; id <= 12; ++id) {
      const Tokens prompt = RandomTokens(random, 1 + below(150));
      const int length_max = static_cast<int>(prompt.size()) + 1 + below(230);
      expected[id] = Alone(prompt, length_max);
      world.Add(id, prompt, length_max, below(3));
      for (int steps = below(12); steps > 0 && world.Step(); --steps) {
      }
    }
    world.RunAll();
    EXPECT_EQ(world.finished(), expected) << "seed " << seed;
    EXPECT_EQ(world.ledger().used_count(), 0);
    preemptions += world.scheduler().preemptions();
  }
  EXPECT_GT(preemptions, 20) << "the worlds are too easy";
}

TEST(SchedulerTest, RemovingSequencesAtAnyMomentHarmsNobodyAndLeaksNothing) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SeededRandom random(seed);
    World world({.max_num_batched_tokens = 64, .max_num_seqs = 4, .max_logit_rows = 4}, 8);
    std::map<uint64_t, Tokens> expected;
    for (uint64_t id = 1; id <= 10; ++id) {
      const Tokens prompt = RandomTokens(random, 1 + static_cast<int>(random.Next() % 200));
      const int length_max = static_cast<int>(prompt.size()) + 100;
      world.Add(id, prompt, length_max);
      if (id % 2 == 0) expected[id] = Alone(prompt, length_max);
    }
    for (uint64_t id = 1; id <= 10; id += 2) {
      for (int steps = static_cast<int>(random.Next() % 20); steps > 0; --steps) world.Step();
      world.scheduler().Remove(Named(id));
      world.scheduler().Remove(Named(id));
    }
    world.RunAll();
    for (const auto& [id, tokens] : expected) EXPECT_EQ(world.finished().at(id), tokens);
    EXPECT_EQ(world.ledger().used_count(), 0);
  }
}

TEST(SchedulerTest, ForcedTokensAreComputedButNeverSampled) {
  SeededRandom random(3);
  const Tokens prompt = RandomTokens(random, 90);
  const Tokens whole = Alone(prompt, 200);
  for (int known : {91, 127, 128, 129, 199}) {
    World world({.max_num_batched_tokens = 32, .max_num_seqs = 2, .max_logit_rows = 2}, 8);
    world.Add(1, Tokens(whole.begin(), whole.begin() + known), 200);
    world.RunAll();
    EXPECT_EQ(world.finished().at(1), whole);
    EXPECT_EQ(world.rows_computed(), 199);
  }
}

TEST(SchedulerTest, SaysWhatEachRowIsComputedFor) {
  PageLedger ledger(8, [](int32_t) {});
  Scheduler scheduler({.max_num_batched_tokens = 40, .max_num_seqs = 2, .max_logit_rows = 2},
                      ledger);
  ASSERT_TRUE(scheduler
                  .Add({.name = Named(1),
                        .prompt_length = 45,
                        .length_max = 60,
                        .tokens = Tokens(50, 1)})
                  .ok());
  std::vector<int> rows;
  std::vector<kernels::RowRole> roles;
  for (int step = 0; step < 2; ++step) {
    const kernels::StepPlan& plan = scheduler.Plan().plan;
    ASSERT_EQ(plan.sequences.size(), 1u);
    EXPECT_EQ(plan.sequences[0].prompt_length, 45);
    rows.push_back(plan.sequences[0].first_rows_of_prompt());
    roles.insert(roles.end(), plan.roles.begin(), plan.roles.end());
    EXPECT_FALSE(plan.decodes());
    scheduler.Commit();
  }
  EXPECT_EQ(rows, (std::vector<int>{40, 5}));
  std::vector<kernels::RowRole> expected(45, kernels::RowRole::kPrompt);
  expected.resize(49, kernels::RowRole::kForced);
  expected.push_back(kernels::RowRole::kDecode);
  EXPECT_EQ(roles, expected);
}

TEST(SchedulerTest, RunsDecodeRowsBeforePromptChunks) {
  World world({.max_num_batched_tokens = 10, .max_num_seqs = 4, .max_logit_rows = 4}, 16);
  world.Add(1, Tokens(5, 1), 20);
  world.Step();
  world.Add(2, Tokens(100, 2), 110);
  const Batch& batch = world.scheduler().Plan();
  ASSERT_EQ(batch.sequences.size(), 2);
  EXPECT_EQ(batch.sequences[0].name, Named(1));
  EXPECT_EQ(batch.sequences[0].drawn_count, 1);
  EXPECT_EQ(batch.sequences[1].name, Named(2));
  EXPECT_EQ(batch.sequences[1].row_count, 9);
  EXPECT_EQ(batch.sequences[1].drawn_count, 0);
  EXPECT_EQ(batch.plan.logit_rows, (std::vector<int32_t>{0}));
}

TEST(SchedulerTest, AdmitsByPriorityThenByArrival) {
  World world({.max_num_batched_tokens = 8, .max_num_seqs = 1, .max_logit_rows = 1}, 16);
  world.Add(1, Tokens(3, 1), 5, /*priority=*/1);
  world.Add(2, Tokens(3, 1), 5, /*priority=*/1);
  world.Add(3, Tokens(3, 1), 5, /*priority=*/0);
  std::vector<uint64_t> order;
  while (world.Step()) {
    for (const auto& [id, tokens] : world.finished()) {
      if (std::ranges::find(order, id) == order.end()) order.push_back(id);
    }
  }
  EXPECT_EQ(order, (std::vector<uint64_t>{3, 1, 2}));
}

TEST(SchedulerTest, NeverPreemptsTheFirstInLine) {
  // Each may grow to 5 pages; the pool has 6, so they cannot all stay.
  World world({.max_num_batched_tokens = 64, .max_num_seqs = 4, .max_logit_rows = 4}, 6);
  for (uint64_t id = 1; id <= 4; ++id) world.Add(id, Tokens(60, static_cast<int>(id)), 300);
  size_t first_length = 0;
  while (!world.finished().contains(1)) {
    ASSERT_TRUE(world.Step());
    if (world.finished().contains(1)) break;
    const size_t length = world.scheduler().Find(Named(1))->tokens.size();
    if (first_length > 0) {
      ASSERT_EQ(length, first_length + 1) << "the first in line stood still";
    }
    if (length > 60) first_length = length;
  }
  EXPECT_GT(world.scheduler().preemptions(), 0);
  world.RunAll();
  EXPECT_EQ(world.finished().size(), 4);
}

TEST(SchedulerTest, RefusesWhatCouldNeverFinishNamingTheShortfall) {
  World world({.max_num_batched_tokens = 64, .max_num_seqs = 1, .max_logit_rows = 1}, 2);
  const absl::Status status =
      world.scheduler().Add({.name = Named(1), .length_max = 130, .tokens = Tokens(10, 1)});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("need 3 KV pages"), std::string::npos) << status;
  EXPECT_EQ(world.scheduler().Find(Named(1)), nullptr);
  world.Add(2, Tokens(10, 1), 129);
  world.RunAll();
  EXPECT_TRUE(world.finished().contains(2));
}

TEST(SchedulerTest, AsksForEachScoredRowOnceAndWithinTheLogitLimit) {
  PageLedger ledger(4);
  Scheduler scheduler({.max_num_batched_tokens = 50, .max_num_seqs = 1, .max_logit_rows = 7},
                      ledger);
  ASSERT_TRUE(scheduler
                  .Add({.name = Named(1),
                        .prompt_length = 40,
                        .length_max = 60,
                        .scored_rows = 20,
                        .tokens = Tokens(40, 1)})
                  .ok());
  std::vector<int32_t> scored;
  for (bool sampled = false; !sampled;) {
    const Batch& batch = scheduler.Plan();
    ASSERT_LE(batch.plan.logit_rows.size(), 7);
    for (int32_t row : batch.plan.logit_rows) scored.push_back(batch.plan.positions[row]);
    sampled = batch.sequences[0].drawn_count > 0;
    scheduler.Commit();
  }
  std::vector<int32_t> expected(20);
  for (int i = 0; i < 20; ++i) expected[i] = i;
  expected.push_back(39);
  EXPECT_EQ(scored, expected);
}

TEST(SchedulerTest, AcceptsAnyNumberOfTokensAndTakesThemBackInAnyStateWithoutAChangeOfTokens) {
  int64_t preemptions = 0, taken_back_while_waiting = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SeededRandom random(seed);
    const auto below = [&](int n) { return static_cast<int>(random.Next() % n); };
    SchedulerLimits limits{.max_num_batched_tokens = 1 + below(150), .max_num_seqs = 1 + below(9)};
    limits.max_logit_rows = limits.max_num_seqs + below(20);
    World world(limits, 6 + below(4));
    std::map<uint64_t, Tokens> expected;
    std::map<uint64_t, int> prompt_lengths;
    for (uint64_t id = 1; id <= 8; ++id) {
      const Tokens prompt = RandomTokens(random, 1 + below(150));
      prompt_lengths[id] = static_cast<int>(prompt.size());
      const int length_max = prompt_lengths[id] + 1 + below(200);
      const Tokens& whole = expected[id] = Alone(prompt, length_max);
      world.Add(id, prompt, length_max, below(3), whole, 1 + below(7));
      for (int steps = below(20); steps > 0 && world.Step(); --steps) {
        const uint64_t other = 1 + below(static_cast<int>(id));
        const Sequence* sequence = world.scheduler().Find(Named(other));
        if (sequence == nullptr || below(3) > 0) continue;
        const int kept = sequence->length() - prompt_lengths[other];
        const int length = sequence->length() - below(kept + 1);
        taken_back_while_waiting += sequence->lease.page_count() == 0 ? 1 : 0;
        world.scheduler().Truncate(Named(other), length);
        EXPECT_EQ(sequence->lease.page_count(), PagesFor(sequence->computed));
        EXPECT_TRUE(world.scheduler().CheckIntegrity().ok());
        if (sequence->remaining() > 0) continue;
        world.scheduler().Accept(Named(other), std::span(expected[other]).subspan(length, 1));
      }
    }
    world.RunAll();
    EXPECT_EQ(world.finished(), expected) << "seed " << seed;
    EXPECT_EQ(world.ledger().used_count(), 0);
    preemptions += world.scheduler().preemptions();
  }
  EXPECT_GT(preemptions, 20) << "the worlds are too easy";
  EXPECT_GT(taken_back_while_waiting, 20);
}

TEST(SchedulerTest, TruncateFreesThePagesBeyondAndForgetsTheRecords) {
  struct Case {
    int length, computed, pages;
  };
  for (const Case& each : {Case{200, 199, 4}, Case{199, 199, 4}, Case{193, 193, 4},
                           Case{192, 192, 3}, Case{191, 191, 3}, Case{129, 129, 3},
                           Case{128, 128, 2}, Case{100, 100, 2}}) {
    World world({.max_num_batched_tokens = 500, .max_num_seqs = 1, .max_logit_rows = 1}, 8);
    world.Add(1, Tokens(199, 1), 300);
    world.Step();
    world.scheduler().Truncate(Named(1), each.length);
    const Sequence& sequence = *world.scheduler().Find(Named(1));
    EXPECT_EQ(sequence.length(), each.length);
    EXPECT_EQ(sequence.computed, each.computed);
    EXPECT_EQ(sequence.lease.page_count(), each.pages);
    EXPECT_EQ(world.ledger().used_count(), each.pages);
  }
}

TEST(SchedulerTest, TruncateWhileForcedTokensAreComputedKeepsWhatStandsBefore) {
  SeededRandom random(5);
  const Tokens whole = Alone(RandomTokens(random, 70), 200);
  World world({.max_num_batched_tokens = 100, .max_num_seqs = 1, .max_logit_rows = 1}, 8);
  world.Add(1, Tokens(whole.begin(), whole.begin() + 150), 200);
  world.Step();
  const Sequence& sequence = *world.scheduler().Find(Named(1));
  EXPECT_EQ(sequence.computed, 100);
  world.scheduler().Truncate(Named(1), 110);
  EXPECT_EQ(sequence.computed, 100);
  world.scheduler().Truncate(Named(1), 90);
  EXPECT_EQ(sequence.computed, 90);
  world.scheduler().Accept(Named(1), std::span(whole).subspan(90, 1));
  world.RunAll();
  EXPECT_EQ(world.finished().at(1), whole);
}

TEST(SchedulerTest, APromptOfOneRowIsAPromptAndNoDecode) {
  World world({.max_num_batched_tokens = 8, .max_num_seqs = 2, .max_logit_rows = 2}, 16);
  ASSERT_TRUE(world.scheduler()
                  .Add({.name = Named(1), .prompt_length = 1, .length_max = 6, .tokens = {7}})
                  .ok());
  EXPECT_FALSE(world.scheduler().Plan().plan.decodes());
  world.scheduler().Commit();
  world.scheduler().Accept(Named(1), Tokens{3});
  EXPECT_TRUE(world.scheduler().Plan().plan.decodes());
  world.scheduler().Commit();
  // What was accepted together is computed together; its last row alone gives the next token.
  world.scheduler().Accept(Named(1), Tokens{4});
  world.scheduler().Truncate(Named(1), 2);
  world.scheduler().Accept(Named(1), Tokens{4, 5, 6});
  const Batch& batch = world.scheduler().Plan();
  EXPECT_TRUE(batch.plan.decodes());
  EXPECT_EQ(batch.plan.token_ids, (Tokens{4, 5, 6}));
  EXPECT_EQ(batch.plan.logit_rows, (Tokens{2}));
  EXPECT_EQ(batch.sequences[0].drawn_count, 1);
}

TEST(SchedulerTest, ManyNewTokensOfOthersNeverKeepTheFirstInLineFromItsRow) {
  World world({.max_num_batched_tokens = 4, .max_num_seqs = 4, .max_logit_rows = 4}, 16);
  SeededRandom random(9);
  for (uint64_t id = 1; id <= 3; ++id) {
    const Tokens prompt = RandomTokens(random, 2);
    world.Add(id, prompt, 90, /*priority=*/1, Alone(prompt, 90), /*burst=*/4);
  }
  for (int step = 0; step < 6; ++step) world.Step();
  world.Add(9, RandomTokens(random, 60), 62, /*priority=*/0);
  int computed = 0;
  while (!world.finished().contains(9)) {
    ASSERT_TRUE(world.Step());
    if (const Sequence* first = world.scheduler().Find(Named(9)); first != nullptr) {
      EXPECT_GT(first->computed, computed) << "the first in line stood still";
      computed = first->computed;
    }
  }
}

TEST(SchedulerTest, ANameThatIsGivenAgainDuringAStepIsAnotherSequence) {
  World world({.max_num_batched_tokens = 8, .max_num_seqs = 2, .max_logit_rows = 2}, 16);
  world.Add(1, Tokens(5, 1), 10);
  const Batch batch = world.scheduler().Plan();
  world.scheduler().Remove(Named(1));
  world.Add(1, Tokens(3, 2), 10);
  world.scheduler().Commit();
  EXPECT_EQ(world.scheduler().Find(batch.sequences[0]), nullptr);
  EXPECT_EQ(world.scheduler().Find(Named(1))->computed, 0);
  EXPECT_TRUE(world.scheduler().CheckIntegrity().ok());
}

}  // namespace
}  // namespace epic::worker
