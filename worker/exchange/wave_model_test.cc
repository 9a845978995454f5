// Engines on every rank of a world that steps together: linked with threads, and with MPI to be run
// by mpirun -n 4. Each request's tokens are those that an engine alone gives.
#include "worker/exchange/wave_model.h"

#include <map>
#include <memory>
#include <thread>

#include "base/sim_loop.h"
#include "cluster/transport/testing/world.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/reference_backend.h"
#include "model/checkpoint.h"
#include "model/local_exchange.h"
#include "model/testing/tiny_checkpoint.h"
#include "worker/engine/engine.h"
#include "worker/engine/transformer.h"
#include "worker/testing/even_map.h"
#include "worker/kv/kv_pool.h"
#include "worker/testing/model_experts.h"
#include "worker/testing/start.h"

namespace epic::worker {
namespace {

using cluster::Collective;
using Tokens = std::map<uint64_t, std::vector<int32_t>>;

constexpr int kPages = 12;
constexpr EngineLimits kLimits = {.scheduler = {.max_num_batched_tokens = 24, .max_num_seqs = 8},
                                  .max_model_len = 200};

v1::StartSequence Request(uint64_t id, int prompt_length, int max_tokens) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < prompt_length; ++i) {
    prompt.push_back(static_cast<int32_t>((id * 41 + i * 17) % 157));
  }
  return NewStart(id, prompt, max_tokens);
}

// What a rank has: weights, pages, and an engine once it knows its exchange.
class EngineRank {
 public:
  EngineRank(const std::string& folder, const model::LoadOptions& options)
      : model_(Load(folder, *backend_, options)),
        pool_(*backend_, model_->kv_layout(), model_->config().layer_count, kPages),
        pages_(kPages, [this](int32_t page) { pool_.ZeroPage(page); }),
        experts_(*model_, *backend_) {}

  const model::Model& model() const { return *model_; }
  kernels::Backend& backend() { return *backend_; }
  ExpertSet& experts() { return experts_; }
  Transformer MakeTransformer(model::ExpertExchange& exchange) {
    return Transformer(*model_, *backend_, exchange, pool_, 24, 16);
  }
  Engine MakeEngine(TokenModel& model) { return Engine(kLimits, model, pages_); }

 private:
  static std::unique_ptr<model::Model> Load(const std::string& folder, kernels::Backend& backend,
                                            const model::LoadOptions& options) {
    const auto checkpoint = model::Checkpoint::Open(folder);
    auto loaded =
        model::Model::Load(*model::ReadModelConfig(folder), **checkpoint, backend, options);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return *std::move(loaded);
  }

  const std::unique_ptr<kernels::Backend> backend_ = kernels::MakeReferenceBackend({});
  std::unique_ptr<model::Model> model_;
  KvPool pool_;
  PageLedger pages_;
  ModelExperts experts_;
};

void Take(const StepResult& result, Tokens& tokens) {
  for (const v1::SequenceToken& token : result.tokens) {
    tokens[token.sequence()].push_back(token.token());
  }
}

class WaveModelTest : public testing::Test {
 protected:
  WaveModelTest()
      : folder_(model::WriteCheckpoint(model::TinyConfig(),
                                       model::TinyTensors(model::TinyConfig(), 4))) {}

  Tokens Alone(std::vector<v1::StartSequence> requests) const {
    EngineRank rank(folder_, {});
    model::LocalExchange local(rank.model(), rank.backend());
    Transformer transformer = rank.MakeTransformer(local);
    Engine engine = rank.MakeEngine(transformer);
    for (const v1::StartSequence& request : requests) EXPECT_TRUE(engine.Start(request).ok());
    Tokens tokens;
    while (engine.busy()) {
      if (engine.Advance() == Engine::Progress::kStepDone) Take(engine.result(), tokens);
    }
    return tokens;
  }

  // Runs `turn` as a worker's loop does, until the world stops or `turn` says that it has enough.
  void RunRank(Collective& collective,
               const std::function<bool(Engine& engine, WaveModel& wave)>& turn) const {
    const cluster::ExpertMap map = EvenMap(*model::ReadModelConfig(folder_), collective.size());
    const ExpertOrder order = OrderOf(map, collective.rank());
    EngineRank rank(folder_, {.wants_expert = [&](int layer, int expert) {
                      return order.wanted.contains({layer, expert});
                    }});
    const model::ModelConfig& config = rank.model().config();
    const ExchangeShape shape{.layer_count = config.layer_count,
                              .expert_count = config.expert_count,
                              .experts_per_token = config.experts_per_token,
                              .hidden = config.hidden_size};
    CollectiveExchange exchange(shape, 24, rank.backend(), rank.experts(), collective);
    exchange.SetMap(std::make_shared<const cluster::ExpertMap>(map));
    Transformer transformer = rank.MakeTransformer(exchange);
    SimLoop clock;
    WaveModel wave(rank.model().config(), transformer, exchange, clock);
    Engine engine = rank.MakeEngine(wave);
    while (!wave.stopped() && turn(engine, wave)) {
      clock.Advance(wave.wait());
      std::this_thread::yield();
    }
  }

  const std::string folder_;
};

TEST_F(WaveModelTest, EveryRequestGetsTheTokensOfAnEngineAlone) {
  if (!cluster::HasWorld(4)) GTEST_SKIP() << "not a world of 4";
  // By rank; rank 1 has none, rank 3's comes when the world is at rest.
  const std::vector<std::vector<v1::StartSequence>> requests = {
      {Request(1, 5, 12), Request(2, 70, 3), Request(3, 1, 20)},
      {},
      {Request(4, 100, 6)},
      {Request(5, 9, 9)}};
  std::vector<v1::StartSequence> all;
  for (const auto& of_rank : requests) all.insert(all.end(), of_rank.begin(), of_rank.end());
  const Tokens expected = Alone(all);
  cluster::RunWorld(4, [&](Collective& collective) {
    const int rank = collective.rank();
    Tokens tokens;
    bool started = false;
    RunRank(collective, [&](Engine& engine, WaveModel& wave) {
      if (!started && (rank != 3 || wave.rests() >= 3)) {
        for (const v1::StartSequence& request : requests[rank]) {
          EXPECT_TRUE(engine.Start(request).ok());
        }
        started = true;
      }
      // Ranks that have ended stay for those that have not.
      if (started && !engine.busy()) wave.End();
      if (engine.Advance() == Engine::Progress::kStepDone) Take(engine.result(), tokens);
      EXPECT_EQ(wave.Join(), absl::OkStatus());
      return true;
    });
    EXPECT_EQ(tokens.size(), requests[rank].size());
    for (const auto& [id, of_sequence] : tokens) EXPECT_EQ(of_sequence, expected.at(id)) << id;
  });
}

TEST_F(WaveModelTest, AnIdleWorldPausesAndAllWakeForOneRank) {
  if (!cluster::HasWorld(4)) GTEST_SKIP() << "not a world of 4";
  cluster::RunWorld(4, [&](Collective& collective) {
    int rests_max = 0;
    absl::Duration wait_max;
    bool started = false;
    RunRank(collective, [&](Engine& engine, WaveModel& wave) {
      rests_max = std::max(rests_max, wave.rests());
      if (collective.rank() == 0 && !started && wave.rests() == 6) {
        EXPECT_TRUE(engine.Start(Request(1, 3, 2)).ok());
        started = true;
      }
      engine.Advance();
      EXPECT_EQ(wave.Join(), absl::OkStatus());
      // The step has set the rests to nothing on all ranks.
      if (rests_max == 6 && wave.rests() < 6) wave.End();
      wait_max = std::max(wait_max, wave.wait());
      return true;
    });
    EXPECT_EQ(rests_max, 6);
    EXPECT_GT(wait_max, absl::Milliseconds(8));
    EXPECT_LE(wait_max, WaveModel::kPauseMax);
  });
}

TEST_F(WaveModelTest, AnAbortIsHeardInJoinAndFailsNoSequence) {
  if (!cluster::HasWorld(3) || !cluster::OutlivesAbort()) GTEST_SKIP() << "an abort ends the world";
  cluster::RunWorld(3, [&](Collective& collective) {
    const int rank = collective.rank();
    int steps = 0;
    absl::Status status;
    bool started = false;
    RunRank(collective, [&](Engine& engine, WaveModel& wave) {
      // Rank 1 has nothing to do.
      if (!started && rank != 1) {
        EXPECT_TRUE(engine.Start(Request(rank, 4, 50)).ok());
      }
      started = true;
      if (engine.Advance() == Engine::Progress::kStepDone) {
        ++steps;
        EXPECT_TRUE(engine.result().failed.empty());
      }
      status = wave.Join();
      if (rank == 2 && steps == 5) collective.Abort("out of memory");
      return status.ok();
    });
    EXPECT_EQ(status, absl::AbortedError("rank 2: out of memory"));
  });
}

}  // namespace
}  // namespace epic::worker
