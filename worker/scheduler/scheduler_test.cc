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

// A scheduler with a toy model: runs steps and samples greedily.
class World {
 public:
  World(const SchedulerLimits& limits, int page_count)
      : model_(kVocab, page_count),
        ledger_(page_count, [this](int32_t page) { model_.ErasePage(page); }),
        limits_(limits),
        scheduler_(limits, ledger_) {}

  Scheduler& scheduler() { return scheduler_; }
  PageLedger& ledger() { return ledger_; }
  const std::map<SequenceId, Tokens>& finished() const { return finished_; }
  int64_t rows_computed() const { return model_.rows_computed(); }

  void Add(SequenceId id, const Tokens& tokens, int length_max, int priority = 0) {
    length_max_[id] = length_max;
    ASSERT_TRUE(
        scheduler_.Add({.id = id, .tokens = tokens, .length_max = length_max, .priority = priority})
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
      if (each.samples) Sample(each);
    }
    EXPECT_TRUE(ledger_.CheckIntegrity().ok()) << ledger_.CheckIntegrity();
    return true;
  }

  void RunAll() {
    for (int step = 0; Step(); ++step) ASSERT_LT(step, 100'000);
  }

 private:
  void Sample(const BatchSequence& each) {
    const int32_t token = Greedy(model_.Logits(each.first_logit + each.logit_count - 1));
    scheduler_.Append(each.id, token);
    const auto tokens = scheduler_.tokens(each.id);
    if (static_cast<int>(tokens.size()) < length_max_.at(each.id)) return;
    finished_[each.id].assign(tokens.begin(), tokens.end());
    scheduler_.Remove(each.id);
  }

  ToyModel model_;
  PageLedger ledger_;
  SchedulerLimits limits_;
  Scheduler scheduler_;
  std::map<SequenceId, int> length_max_;
  std::map<SequenceId, Tokens> finished_;
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
    std::map<SequenceId, Tokens> expected;
    for (SequenceId id = 1; id <= 12; ++id) {
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
    std::map<SequenceId, Tokens> expected;
    for (SequenceId id = 1; id <= 10; ++id) {
      const Tokens prompt = RandomTokens(random, 1 + static_cast<int>(random.Next() % 200));
      const int length_max = static_cast<int>(prompt.size()) + 100;
      world.Add(id, prompt, length_max);
      if (id % 2 == 0) expected[id] = Alone(prompt, length_max);
    }
    for (SequenceId id = 1; id <= 10; id += 2) {
      for (int steps = static_cast<int>(random.Next() % 20); steps > 0; --steps) world.Step();
      world.scheduler().Remove(id);
      world.scheduler().Remove(id);
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

TEST(SchedulerTest, SaysOfEachSequenceWhereItsPromptEnds) {
  PageLedger ledger(8, [](int32_t) {});
  Scheduler scheduler({.max_num_batched_tokens = 40, .max_num_seqs = 2, .max_logit_rows = 2},
                      ledger);
  ASSERT_TRUE(
      scheduler.Add({.id = 1, .tokens = Tokens(50, 1), .length_max = 60, .prompt_length = 45})
          .ok());
  std::vector<int> rows;
  for (int step = 0; step < 2; ++step) {
    const kernels::StepPlan& plan = scheduler.Plan().plan;
    ASSERT_EQ(plan.sequences.size(), 1u);
    EXPECT_EQ(plan.sequences[0].prompt_length, 45);
    rows.push_back(plan.sequences[0].first_rows_of_prompt());
    scheduler.Commit();
  }
  EXPECT_EQ(rows, (std::vector<int>{40, 5}));
}

TEST(SchedulerTest, RunsDecodeRowsBeforePromptChunks) {
  World world({.max_num_batched_tokens = 10, .max_num_seqs = 4, .max_logit_rows = 4}, 16);
  world.Add(1, Tokens(5, 1), 20);
  world.Step();
  world.Add(2, Tokens(100, 2), 110);
  const Batch& batch = world.scheduler().Plan();
  ASSERT_EQ(batch.sequences.size(), 2);
  EXPECT_EQ(batch.sequences[0].id, 1);
  EXPECT_TRUE(batch.sequences[0].samples);
  EXPECT_EQ(batch.sequences[1].id, 2);
  EXPECT_EQ(batch.sequences[1].row_count, 9);
  EXPECT_FALSE(batch.sequences[1].samples);
  EXPECT_EQ(batch.plan.logit_rows, (std::vector<int32_t>{0}));
}

TEST(SchedulerTest, AdmitsByPriorityThenByArrival) {
  World world({.max_num_batched_tokens = 8, .max_num_seqs = 1, .max_logit_rows = 1}, 16);
  world.Add(1, Tokens(3, 1), 5, /*priority=*/1);
  world.Add(2, Tokens(3, 1), 5, /*priority=*/1);
  world.Add(3, Tokens(3, 1), 5, /*priority=*/0);
  std::vector<SequenceId> order;
  while (world.Step()) {
    for (const auto& [id, tokens] : world.finished()) {
      if (std::ranges::find(order, id) == order.end()) order.push_back(id);
    }
  }
  EXPECT_EQ(order, (std::vector<SequenceId>{3, 1, 2}));
}

TEST(SchedulerTest, NeverPreemptsTheFirstInLine) {
  // Each may grow to 5 pages; the pool has 6, so they cannot all stay.
  World world({.max_num_batched_tokens = 64, .max_num_seqs = 4, .max_logit_rows = 4}, 6);
  for (SequenceId id = 1; id <= 4; ++id) world.Add(id, Tokens(60, static_cast<int>(id)), 300);
  size_t first_length = 0;
  while (!world.finished().contains(1)) {
    ASSERT_TRUE(world.Step());
    if (world.finished().contains(1)) break;
    const size_t length = world.scheduler().tokens(1).size();
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
      world.scheduler().Add({.id = 1, .tokens = Tokens(10, 1), .length_max = 130});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("need 3 KV pages"), std::string::npos) << status;
  EXPECT_FALSE(world.scheduler().contains(1));
  world.Add(2, Tokens(10, 1), 129);
  world.RunAll();
  EXPECT_TRUE(world.finished().contains(2));
}

TEST(SchedulerTest, AsksForEachScoredRowOnceAndWithinTheLogitLimit) {
  PageLedger ledger(4);
  Scheduler scheduler({.max_num_batched_tokens = 50, .max_num_seqs = 1, .max_logit_rows = 7},
                      ledger);
  ASSERT_TRUE(
      scheduler.Add({.id = 1, .tokens = Tokens(40, 1), .length_max = 60, .scored_rows = 20}).ok());
  std::vector<int32_t> scored;
  for (bool sampled = false; !sampled;) {
    const Batch& batch = scheduler.Plan();
    ASSERT_LE(batch.plan.logit_rows.size(), 7);
    for (int32_t row : batch.plan.logit_rows) scored.push_back(batch.plan.positions[row]);
    sampled = batch.sequences[0].samples;
    scheduler.Commit();
  }
  std::vector<int32_t> expected(20);
  for (int i = 0; i < 20; ++i) expected[i] = i;
  expected.push_back(39);
  EXPECT_EQ(scored, expected);
}

}  // namespace
}  // namespace epic::worker
