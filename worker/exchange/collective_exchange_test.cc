// Of the exchange on every rank of a world: linked with threads, and with MPI to be run by
// mpirun -n 4. What each rank computes is held against the same rows over a LocalExchange.
#include "worker/exchange/collective_exchange.h"

#include <memory>
#include <optional>
#include <thread>

#include "cluster/transport/testing/world.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/number.h"
#include "kernels/reference/reference_backend.h"
#include "kernels/testing/random.h"
#include "model/checkpoint.h"
#include "model/idle_step.h"
#include "model/local_exchange.h"
#include "model/step.h"
#include "model/testing/tiny_checkpoint.h"
#include "worker/exchange/rank_class.h"
#include "worker/testing/even_map.h"
#include "worker/testing/model_experts.h"

namespace epic::worker {
namespace {

using cluster::Collective;
using model::Step;
using testing::HasSubstr;
using Rows = std::vector<std::vector<float>>;

constexpr int kRowsMax = 80;
constexpr int kTileRows = 16;
constexpr int kPages = 2;

nlohmann::json Config() {
  nlohmann::json config = model::TinyConfig();
  config["n_routed_experts"] = 8;
  return config;
}

ExchangeShape ShapeOf(const model::ModelConfig& config) {
  return {.layer_count = config.layer_count,
          .expert_count = config.expert_count,
          .experts_per_token = config.experts_per_token,
          .hidden = config.hidden_size};
}

// The rows of one sequence in a step: positions first … first + count − 1.
struct Batch {
  int sequence = 0;
  int first = 0;
  int count = 0;  // 0: idle
};

kernels::StepPlan PlanOf(const Batch& batch) {
  kernels::StepPlan plan;
  for (int i = 0; i < batch.count; ++i) {
    const int position = batch.first + i;
    plan.token_ids.push_back((batch.sequence * 131 + position * 37) % 157);
    plan.positions.push_back(position);
    plan.row_sequence.push_back(0);
    plan.logit_rows.push_back(i);
  }
  plan.sequences = {{.row_count = batch.count, .first_position = batch.first}};
  plan.pages = {0, 1};
  return plan;
}

// A model with pages of its own, as a rank has it.
class Replica {
 public:
  Replica(const std::string& folder, const model::LoadOptions& options) {
    const auto checkpoint = model::Checkpoint::Open(folder);
    auto loaded =
        model::Model::Load(*model::ReadModelConfig(folder), **checkpoint, *backend_, options);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    model_ = *std::move(loaded);
    for (int layer = 0; layer < model_->config().layer_count; ++layer) {
      slabs_.push_back(backend_->Allocate(kPages * model_->kv_layout().page_bytes(),
                                          kernels::MemoryUse::kTraffic));
      slab_pointers_.push_back(slabs_.back()->data());
    }
    buffers_.emplace(model_->config(), *backend_, kRowsMax, kRowsMax);
  }

  const model::Model& model() const { return *model_; }
  kernels::Backend& backend() { return *backend_; }

  // The logits of each row, or why there are none. After `turns_max` turns the step is left.
  absl::StatusOr<Rows> Compute(model::ExpertExchange& exchange, const Batch& batch,
                               int turns_max = 1 << 30) {
    const kernels::StepPlan plan = PlanOf(batch);
    const kernels::KvView kv{model_->kv_layout(), slab_pointers_, kPages};
    std::optional<Step> step;
    std::optional<model::IdleStep> idle;
    if (batch.count > 0) {
      step.emplace(*model_, *backend_, exchange, kv, plan, *buffers_);
    } else {
      idle.emplace(model_->config(), exchange);
    }
    for (int turn = 0; turn < turns_max; ++turn) {
      const auto progress = step ? step->Advance() : idle->Advance();
      if (!progress.ok()) return progress.status();
      if (*progress == Step::Progress::kDone) return RowsOf(step, plan);
      if (*progress == Step::Progress::kWaiting) std::this_thread::yield();
    }
    return absl::CancelledError("left");
  }

 private:
  static Rows RowsOf(const std::optional<Step>& step, const kernels::StepPlan& plan) {
    Rows rows;
    for (int i = 0; i < plan.rows(); ++i) {
      rows.emplace_back(step->logits(i).begin(), step->logits(i).end());
    }
    return rows;
  }

  const std::unique_ptr<kernels::Backend> backend_ = kernels::MakeReferenceBackend({});
  std::unique_ptr<model::Model> model_;
  std::vector<std::unique_ptr<kernels::Memory>> slabs_;
  std::vector<std::byte*> slab_pointers_;
  std::optional<model::StepBuffers> buffers_;
};

// One rank: its share of the experts, and the exchange of an epoch.
class Rank {
 public:
  Rank(const std::string& folder, Collective& collective,
       std::shared_ptr<const cluster::ExpertMap> map, bool holds_all = false)
      : collective_(collective),
        replica_(folder, {.wants_expert =
                              [&](int layer, int expert) {
                                const ExpertOrder order = OrderOf(*map, collective.rank());
                                return holds_all || order.wanted.contains({layer, expert});
                              }}),
        experts_(replica_.model(), replica_.backend()) {
    StartEpoch(collective, std::move(map));
  }

  void StartEpoch(Collective& collective, std::shared_ptr<const cluster::ExpertMap> map) {
    exchange_.emplace(ShapeOf(replica_.model().config()), kRowsMax, replica_.backend(), experts_,
                      collective, kTileRows);
    exchange_->SetMap(std::move(map));
  }

  CollectiveExchange& exchange() { return *exchange_; }
  Replica& replica() { return replica_; }

  absl::StatusOr<Wave> Vote(const WaveVote& vote) {
    exchange_->StartVote(vote);
    while (true) {
      auto wave = exchange_->Outcome();
      if (!wave.ok()) return wave.status();
      if (*wave) return **wave;
      std::this_thread::yield();
    }
  }

  absl::StatusOr<Rows> Step(const Batch& batch, int turns_max = 1 << 30) {
    const absl::StatusOr<Wave> wave = Vote({.rows = batch.count});
    if (!wave.ok()) return wave.status();
    EXPECT_EQ(wave->kind, Wave::Kind::kStep);
    return replica_.Compute(*exchange_, batch, turns_max);
  }

 private:
  Collective& collective_;
  Replica replica_;
  ModelExperts experts_;
  std::optional<CollectiveExchange> exchange_;
};

// Steps of a world: [step][rank], cut and mixed at random; about a third of a rank's steps idle.
std::vector<std::vector<Batch>> RandomSteps(int ranks, int steps, uint64_t seed) {
  kernels::Random random(seed);
  std::vector<int> lengths(ranks);
  std::vector<std::vector<Batch>> all;
  for (int step = 0; step < steps; ++step) {
    auto& batches = all.emplace_back();
    for (int rank = 0; rank < ranks; ++rank) {
      constexpr int kCounts[] = {0, 1, 1, 7, 0, 23};
      const int count =
          std::min(kCounts[random.Integer(0, 5)], kPages * kernels::kPageTokens - lengths[rank]);
      batches.push_back({rank, lengths[rank], count});
      lengths[rank] += count;
    }
    // A step in which nobody has rows is none.
    if (std::ranges::all_of(batches, [](const Batch& b) { return b.count == 0; })) {
      batches[step % ranks] = {step % ranks, lengths[step % ranks]++, 1};
    }
  }
  return all;
}

class CollectiveExchangeTest : public testing::Test {
 protected:
  CollectiveExchangeTest()
      : folder_(model::WriteCheckpoint(Config(), model::TinyTensors(Config(), 4))),
        config_(*model::ReadModelConfig(folder_)) {}

  std::shared_ptr<cluster::ExpertMap> Map(int ranks) const {
    return std::make_shared<cluster::ExpertMap>(EvenMap(config_, ranks));
  }

  // What each rank computes alone: [rank][step].
  std::vector<std::vector<Rows>> Alone(const std::vector<std::vector<Batch>>& steps) const {
    std::vector<std::vector<Rows>> all;
    for (size_t rank = 0; rank < steps[0].size(); ++rank) {
      Replica replica(folder_, {});
      model::LocalExchange local(replica.model(), replica.backend());
      auto& of_rank = all.emplace_back();
      for (const auto& batches : steps) {
        of_rank.push_back(batches[rank].count == 0 ? Rows()
                                                   : *replica.Compute(local, batches[rank]));
      }
    }
    return all;
  }

  const std::string folder_;
  const model::ModelConfig config_;
};

TEST_F(CollectiveExchangeTest, TheEvenMapDealsNeighboursOut) {
  const cluster::ExpertMap map = EvenMap(config_, 5);
  std::vector<int> counts(5);
  EXPECT_TRUE(map.replicas[0].empty());  // a dense layer
  for (int expert = 0; expert < 8; ++expert) {
    ASSERT_EQ(map.replicas[1][expert].size(), 1);
    ++counts[map.replicas[1][expert][0]];
  }
  EXPECT_THAT(counts, testing::ElementsAre(2, 2, 1, 2, 1));
  EXPECT_EQ(EvenMap(config_, 16).unhosted_count(), 0);
}

// Sizes that divide the eight experts and sizes that do not, tiles of which some are full, some
// empty.
TEST_F(CollectiveExchangeTest, EveryRankGetsTheBitsThatItWouldComputeAlone) {
  for (const int ranks : {1, 4, 5}) {
    if (!cluster::HasWorld(ranks)) continue;
    const auto steps = RandomSteps(ranks, 8, ranks);
    const auto expected = Alone(steps);
    cluster::RunWorld(ranks, [&](Collective& collective) {
      const int rank = collective.rank();
      Rank here(folder_, collective, Map(ranks));
      for (size_t step = 0; step < steps.size(); ++step) {
        const absl::StatusOr<Rows> rows = here.Step(steps[step][rank]);
        ASSERT_TRUE(rows.ok()) << rows.status();
        EXPECT_TRUE(*rows == expected[rank][step]) << "rank " << rank << " step " << step;
      }
    });
  }
}

// Rows and choices as no model would make them: BF16 bits at random, experts ascending.
struct RandomDispatch {
  RandomDispatch(int rows, int expert_stride, uint64_t seed)
      : values(rows * 100), answers(rows * 3 * 100) {
    kernels::Random random(seed);
    for (kernels::BF16& value : values) value = kernels::ToBF16(random.Real(1));
    for (int row = 0; row < rows; ++row) {
      const int first = expert_stride * random.Integer(0, 7) % 6;
      experts.insert(experts.end(), {first, first + 1, first + 2});
    }
  }
  int rows() const { return static_cast<int>(values.size()) / 100; }
  model::ExpertDispatch dispatch() {
    return {.layer = 1,
            .rows = {kernels::DType::kBF16, rows(), 100, values.data()},
            .experts = {kernels::DType::kI32, rows(), 3, experts.data()},
            .out = {kernels::DType::kBF16, rows() * 3, 100, answers.data()}};
  }
  // What the exchange gives for it.
  std::vector<uint16_t> Finish(model::ExpertExchange& exchange, int ticket) {
    while (!exchange.Ready(ticket)) std::this_thread::yield();
    EXPECT_TRUE(exchange.Finish(ticket, dispatch().out).ok());
    std::vector<uint16_t> bits;
    for (const kernels::BF16 answer : answers) bits.push_back(answer.bits);
    return bits;
  }

  std::vector<kernels::BF16> values, answers;
  std::vector<int32_t> experts;
};

TEST_F(CollectiveExchangeTest, TwoTicketsAreOpenAtATime) {
  if (!cluster::HasWorld(4)) GTEST_SKIP() << "not a world of 4";
  Replica whole(folder_, {});
  model::LocalExchange local(whole.model(), whole.backend());
  constexpr int kRows[][4] = {{80, 3, 0, 1}, {1, 0, 0, 20}};
  std::vector<uint16_t> expected[2][4];
  for (int half = 0; half < 2; ++half) {
    for (int rank = 0; rank < 4; ++rank) {
      RandomDispatch random(kRows[half][rank], half, half * 4 + rank);
      expected[half][rank] = random.Finish(local, local.Begin(random.dispatch()));
    }
  }
  cluster::RunWorld(4, [&](Collective& collective) {
    const int rank = collective.rank();
    Rank here(folder_, collective, Map(4));
    ASSERT_TRUE(here.Vote({.rows = kRows[0][rank]}).ok());
    RandomDispatch first(kRows[0][rank], 0, rank), second(kRows[1][rank], 1, 4 + rank);
    CollectiveExchange& exchange = here.exchange();
    const int first_ticket = exchange.Begin(first.dispatch());
    const int second_ticket = exchange.Begin(second.dispatch());
    EXPECT_FALSE(exchange.Ready(second_ticket));
    EXPECT_TRUE(first.Finish(exchange, first_ticket) == expected[0][rank]);
    EXPECT_TRUE(second.Finish(exchange, second_ticket) == expected[1][rank]);
  });
}

TEST_F(CollectiveExchangeTest, TheVoteTellsStepRestAndStop) {
  if (!cluster::HasWorld(4)) GTEST_SKIP() << "not a world of 4";
  cluster::RunWorld(4, [&](Collective& collective) {
    const int rank = collective.rank();
    Rank here(folder_, collective, Map(4));
    const auto vote = [&](int rows, bool ends) { return *here.Vote({rows, ends}); };
    const Wave step = vote(rank == 2 ? 33 : 0, rank != 2);
    EXPECT_EQ(step.kind, Wave::Kind::kStep);
    EXPECT_EQ(step.tiles, 3);
    EXPECT_EQ(vote(0, rank != 1).kind, Wave::Kind::kRest);
    EXPECT_EQ(vote(rank == 1 ? 1 : 0, true).kind, Wave::Kind::kStep);
    EXPECT_EQ(vote(0, true).kind, Wave::Kind::kStop);
  });
}

TEST_F(CollectiveExchangeTest, AMapIsUsedOnceAllRanksHoldIt) {
  if (!cluster::HasWorld(4)) GTEST_SKIP() << "not a world of 4";
  const auto steps = RandomSteps(4, 6, 9);
  const auto expected = Alone(steps);
  // The newer map: each expert on two ranks, none where it was.
  const auto newer = Map(4);
  newer->version.number = 2;
  for (auto& of_layer : newer->replicas) {
    for (auto& holders : of_layer) {
      holders = {(holders[0] + 1) % 4, (holders[0] + 2) % 4};
      std::ranges::sort(holders);
    }
  }
  cluster::RunWorld(4, [&](Collective& collective) {
    const int rank = collective.rank();
    Rank here(folder_, collective, Map(4), /*holds_all=*/true);
    for (size_t step = 0; step < steps.size(); ++step) {
      // Each rank hears of it before another step.
      if (static_cast<int>(step) == rank) here.exchange().SetMap(newer);
      const absl::StatusOr<Rows> rows = here.Step(steps[step][rank]);
      ASSERT_TRUE(rows.ok()) << rows.status();
      EXPECT_TRUE(*rows == expected[rank][step]) << "rank " << rank << " step " << step;
    }
  });
}

TEST_F(CollectiveExchangeTest, AfterAnAbortTheNextEpochRunsTheStepAgain) {
  if (!cluster::HasWorld(4) || !cluster::OutlivesAbort()) GTEST_SKIP() << "an abort ends the world";
  const std::vector<std::vector<Batch>> steps = {{{0, 0, 20}, {1, 0, 3}, {2, 0, 9}, {3, 0, 0}},
                                                 {{0, 20, 1}, {1, 3, 0}, {2, 9, 30}, {3, 0, 2}},
                                                 {{0, 21, 1}, {1, 3, 1}, {2, 39, 1}, {3, 2, 0}}};
  const auto expected = Alone(steps);
  // Rank 2 leaves the second step before its first exchange, in it, and at or before its second.
  for (const int turns : {0, 4, 8}) {
    std::vector<std::unique_ptr<Rank>> ranks(4);
    cluster::RunWorld(4, [&](Collective& collective) {
      const int rank = collective.rank();
      ranks[rank] = std::make_unique<Rank>(folder_, collective, Map(4));
      EXPECT_TRUE(*ranks[rank]->Step(steps[0][rank]) == expected[rank][0]);
      const absl::StatusOr<Rows> rows =
          ranks[rank]->Step(steps[1][rank], rank == 2 ? turns : 1 << 30);
      if (rank == 2) return collective.Abort("its card is lost");
      EXPECT_EQ(rows.status().code(), absl::StatusCode::kAborted);
      EXPECT_EQ(rows.status().message(), "rank 2: its card is lost");
      const absl::StatusOr<Wave> after = ranks[rank]->Vote({.rows = 1});
      EXPECT_THAT(std::string(after.status().message()), HasSubstr("rank 2: its card is lost"));
    });
    cluster::RunWorld(4, [&](Collective& collective) {
      const int rank = collective.rank();
      ranks[rank]->StartEpoch(collective, Map(4));
      for (int step = 1; step < 3; ++step) {
        const absl::StatusOr<Rows> rows = ranks[rank]->Step(steps[step][rank]);
        ASSERT_TRUE(rows.ok()) << rows.status();
        EXPECT_TRUE(*rows == expected[rank][step]) << "rank " << rank << " step " << step;
      }
    });
  }
}

TEST_F(CollectiveExchangeTest, AnExpertThatIsNotHeldEndsTheEpochByName) {
  if (!cluster::HasWorld(3) || !cluster::OutlivesAbort()) GTEST_SKIP() << "an abort ends the world";
  cluster::RunWorld(3, [&](Collective& collective) {
    const auto map = Map(3);
    Rank here(folder_, collective, map);
    if (collective.rank() == 1) {
      // It believes that rank 2 has all.
      const auto wrong = Map(3);
      for (auto& of_layer : wrong->replicas) {
        for (auto& holders : of_layer) holders = {2};
      }
      here.StartEpoch(collective, wrong);
    }
    const absl::StatusOr<Rows> rows = here.Step({collective.rank(), 0, 20});
    EXPECT_EQ(rows.status().code(), absl::StatusCode::kAborted);
    EXPECT_THAT(std::string(rows.status().message()),
                testing::MatchesRegex("rank 2: layer 1: rank 1 wants expert [0-5], which is not "
                                      "held here"));
  });
}

TEST_F(CollectiveExchangeTest, AnExpertOnNoRankEndsTheEpochByName) {
  if (!cluster::HasWorld(2) || !cluster::OutlivesAbort()) GTEST_SKIP() << "an abort ends the world";
  cluster::RunWorld(2, [&](Collective& collective) {
    const auto map = Map(2);
    Rank here(folder_, collective, map);
    const auto lacking = Map(2);
    lacking->replicas[2].assign(8, {});
    here.StartEpoch(collective, lacking);
    const absl::StatusOr<Rows> rows = here.Step({0, 0, 1});
    EXPECT_THAT(std::string(rows.status().message()), HasSubstr("layer 2: no rank holds expert"));
  });
}

TEST_F(CollectiveExchangeTest, RanksOfTwoClassesAreNamed) {
  if (!cluster::HasWorld(4)) GTEST_SKIP() << "not a world of 4";
  cluster::RunWorld(4, [&](Collective& collective) {
    const auto agreed = [&](const std::string& mine) {
      RankClass ranks(collective, mine);
      while (true) {
        const absl::StatusOr<bool> told = ranks.Agreed();
        if (!told.ok() || *told) return told.status();
        std::this_thread::yield();
      }
    };
    EXPECT_EQ(agreed("fma of tiny-r1"), absl::OkStatus());
    const absl::Status status = agreed(collective.rank() == 3 ? "amx-bf16" : "fma");
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 3 is amx-bf16, rank 0 is fma"));
  });
}

}  // namespace
}  // namespace epic::worker
