// The exchange under the real graph and the real CPU backend: whatever the world's shape, and
// whatever happens to it in the middle, the logits have the bits of one rank alone. So have those
// of the CUDA backend over the emulated device, whose memory is not the host's.
#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/sim_loop.h"
#include "cluster/transport/loopback_transport.h"
#include "cluster/transport/peer_network.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/backend.h"
#include "kernels/testing/random.h"
#include "model/local_exchange.h"
#include "model/step.h"
#include "model/testing/tiny_checkpoint.h"
#include "worker/exchange/message_exchange.h"

namespace epic::worker {
namespace {

using cluster::ExpertMap;
using kernels::Random;
using Logits = std::vector<std::vector<float>>;

constexpr int kExperts = 12, kPages = 4;

std::shared_ptr<kernels::Backend> NewBackend() {
  return kernels::MakeCpuBackend({.family = kernels::CpuFamily::kFma, .threads = 1}).backend;
}

// The model's experts of which some are held.
class SomeExperts : public ExpertSet {
 public:
  SomeExperts(const model::Model& model, kernels::Backend& backend) : backend_(backend) {
    for (const model::Layer& layer : model.layers()) {
      auto& experts = experts_.emplace_back();
      for (const auto& expert : layer.experts) experts.push_back(expert.get());
    }
  }
  void Hold(int layer, int expert) { held_.insert({layer, expert}); }
  void Drop(int layer, int expert) { held_.erase({layer, expert}); }
  bool Holds(int layer, int expert) const override { return held_.contains({layer, expert}); }
  void Compute(int layer, kernels::Tensor rows, std::span<const kernels::ExpertRow> pairs,
               kernels::Tensor out) override {
    for (const auto& pair : pairs) EXPECT_TRUE(Holds(layer, pair.expert));
    backend_.Experts(experts_[layer], rows, pairs, out);
  }

 private:
  kernels::Backend& backend_;
  std::vector<std::vector<const kernels::Mlp*>> experts_;
  std::set<std::pair<int, int>> held_;
};

struct Rank {
  std::shared_ptr<kernels::Backend> backend;
  std::unique_ptr<SomeExperts> experts;
  std::unique_ptr<cluster::LoopbackTransport> transport;
  std::unique_ptr<cluster::PeerNetwork> network;
  std::unique_ptr<MessageExchange> exchange;
};

// A step of one rank, with its cache.
class OneStep {
 public:
  OneStep(const model::Model& model, kernels::Backend& backend, model::ExpertExchange& exchange,
          const std::vector<int32_t>& tokens)
      : buffers_(model.config(), backend, static_cast<int>(tokens.size()),
                 static_cast<int>(tokens.size())) {
    const auto rows = static_cast<int32_t>(tokens.size());
    plan_.token_ids = tokens;
    for (int32_t i = 0; i < rows; ++i) {
      plan_.positions.push_back(i);
      plan_.row_sequence.push_back(0);
      plan_.logit_rows.push_back(i);
    }
    plan_.sequences = {{.row_count = rows}};
    for (int page = 0; page < kPages; ++page) plan_.pages.push_back(page);
    for (int layer = 0; layer < model.config().layer_count; ++layer) {
      slabs_.push_back(
          backend.Allocate(kPages * model.kv_layout().page_bytes(), kernels::MemoryUse::kTraffic));
      pointers_.push_back(slabs_.back()->data());
    }
    kv_ = {model.kv_layout(), pointers_, kPages};
    step_.emplace(model, backend, exchange, kv_, plan_, buffers_);
  }

  bool done() const { return done_; }
  void Advance() {
    if (done_) return;
    const auto progress = step_->Advance();
    ASSERT_TRUE(progress.ok()) << progress.status();
    done_ = *progress == model::Step::Progress::kDone;
  }
  Logits logits() const {
    Logits rows;
    for (int i = 0; i < plan_.rows(); ++i) {
      rows.emplace_back(step_->logits(i).begin(), step_->logits(i).end());
    }
    return rows;
  }

 private:
  model::StepBuffers buffers_;
  kernels::StepPlan plan_;
  std::vector<std::unique_ptr<kernels::Memory>> slabs_;
  std::vector<std::byte*> pointers_;
  kernels::KvView kv_;
  std::optional<model::Step> step_;
  bool done_ = false;
};

class ExchangeModelTest : public testing::Test {
 protected:
  // All ranks compute on `shared`; null: each on a backend of its own.
  explicit ExchangeModelTest(const nlohmann::json& config = model::TinyConfig(),
                             std::shared_ptr<kernels::Backend> shared = nullptr)
      : shared_(std::move(shared)) {
    if (shared_ != nullptr) backend_ = shared_;
    const std::string folder = model::WriteCheckpoint(config, model::TinyTensors(config, 7));
    const auto checkpoint = model::Checkpoint::Open(folder);
    model_ = *model::Model::Load(*model::ReadModelConfig(folder), **checkpoint, *backend_, {});
  }

  // `attention` ranks, then `experts` ranks that hold every expert `replicas` times.
  void MakeWorld(int attention, int experts, int replicas) {
    map_ = {.version = {1, 1}};
    map_.replicas.assign(layers(), std::vector<std::vector<int>>(kExperts));
    map_.replicas[0].clear();
    for (int rank = 0; rank < attention + experts; ++rank) {
      AddRank(rank, rank < attention, rank >= attention);
    }
    for (int layer = 1; layer < layers(); ++layer) {
      for (int expert = 0; expert < kExperts; ++expert) {
        for (int i = 0; i < replicas; ++i) {
          Hold(layer, expert, attention + (layer + expert + i) % experts);
        }
      }
    }
    Publish();
  }

  void AddRank(int rank, bool attention, bool experts) {
    map_.ranks.push_back(
        {{.rank = rank, .generation = 100 + static_cast<uint64_t>(rank)}, attention, experts});
    Rank& made = ranks_[rank];
    made.backend = shared_ != nullptr ? shared_ : NewBackend();
    made.experts = std::make_unique<SomeExperts>(*model_, *made.backend);
    made.transport = std::make_unique<cluster::LoopbackTransport>(network_, rank, 100 + rank);
    made.network = std::make_unique<cluster::PeerNetwork>(*made.transport);
    made.exchange = std::make_unique<MessageExchange>(
        ExchangeShape{layers(), kExperts, 3, model_->config().hidden_size},
        ExchangeLimits{.tile_rows_max = 16, .answer_bytes_max = 4096}, loop_, *made.network,
        *made.experts);
    made.exchange->Join(rank);
  }

  void Hold(int layer, int expert, int rank) {
    std::vector<int>& replicas = map_.replicas[layer][expert];
    if (std::ranges::find(replicas, rank) != replicas.end()) return;
    replicas.push_back(rank);
    std::ranges::sort(replicas);
    ranks_.at(rank).experts->Hold(layer, expert);
  }
  void Publish() {
    for (auto& [rank, each] : ranks_) each.exchange->SetMap(map_);
    ++map_.version.number;
  }

  void Serve() {
    for (auto& [rank, each] : ranks_) each.exchange->Serve();
  }
  // Steps of all attention ranks at once; `between` is called before each turn.
  std::vector<Logits> Compute(const std::vector<std::vector<int32_t>>& prompts,
                              const std::function<void(int turn)>& between = {}) {
    std::vector<std::unique_ptr<OneStep>> runs;
    for (size_t rank = 0; rank < prompts.size(); ++rank) {
      Rank& at = ranks_.at(static_cast<int>(rank));
      runs.push_back(std::make_unique<OneStep>(*model_, *at.backend, *at.exchange, prompts[rank]));
    }
    const auto running = [&] {
      return std::ranges::any_of(runs, [](const auto& run) { return !run->done(); });
    };
    int turn = 0;
    for (; running() && turn < 5000; ++turn) {
      if (between) between(turn);
      for (auto& run : runs) run->Advance();
      Serve();
      loop_.Advance(absl::Milliseconds(1));
    }
    EXPECT_FALSE(running());
    std::vector<Logits> results;
    for (const auto& run : runs) results.push_back(run->logits());
    return results;
  }
  std::vector<Logits> Alone(const std::vector<std::vector<int32_t>>& prompts) {
    std::vector<Logits> results;
    for (const auto& prompt : prompts) {
      model::LocalExchange local(*model_, *backend_);
      OneStep run(*model_, *backend_, local, prompt);
      while (!run.done()) run.Advance();
      results.push_back(run.logits());
    }
    return results;
  }
  static std::vector<std::vector<int32_t>> Prompts(int count, uint64_t seed) {
    Random random(seed);
    std::vector<std::vector<int32_t>> prompts(count);
    for (auto& prompt : prompts) {
      prompt.resize(random.Integer(1, 60));
      for (int32_t& token : prompt) token = random.Integer(0, 156);
    }
    return prompts;
  }

  int layers() const { return model_->config().layer_count; }

  SimLoop loop_;
  const std::shared_ptr<kernels::Backend> shared_;
  std::shared_ptr<kernels::Backend> backend_ = NewBackend();
  std::unique_ptr<model::Model> model_;
  cluster::LoopbackNetwork network_;
  ExpertMap map_;
  std::map<int, Rank> ranks_;
};

struct WorldShape {
  int attention;
  int experts;
};

class ExchangeShapesTest : public ExchangeModelTest,
                           public testing::WithParamInterface<WorldShape> {};

TEST_P(ExchangeShapesTest, HasTheBitsOfOneRank) {
  MakeWorld(GetParam().attention, GetParam().experts, 1);
  const auto prompts = Prompts(GetParam().attention, 3);
  EXPECT_TRUE(Compute(prompts) == Alone(prompts));
  int64_t served = 0;
  for (auto& [rank, each] : ranks_) {
    served += each.exchange->served().rows_served;
    EXPECT_EQ(each.exchange->counters().stale_frames, 0);
    EXPECT_EQ(each.exchange->gauges().outstanding_dispatches, 0);
  }
  int64_t rows = 0;
  for (const auto& prompt : prompts) rows += static_cast<int64_t>(prompt.size());
  EXPECT_EQ(served, rows * 3 * 2);
}

// Experts move, connections break, a rank with replicas elsewhere dies: at random moments.
TEST_P(ExchangeShapesTest, HasTheSameBitsWhileTheWorldChanges) {
  const auto [attention, experts] = GetParam();
  int64_t lost = 0, not_here = 0;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    ranks_.clear();
    MakeWorld(attention, experts, std::min(2, experts));
    Random random(seed);
    bool killed = false;
    const auto nemesis = [&](int turn) {
      const int victim = attention + random.Integer(0, experts - 1);
      const int layer = random.Integer(1, layers() - 1), expert = random.Integer(0, kExperts - 1);
      switch (random.Integer(0, 12)) {
        case 0:
          return network_.Break(random.Integer(0, attention - 1), victim);
        case 1:  // the expert moves; its old host forgets it before anybody has the new map
        case 2: {
          if (!ranks_.contains(victim)) return;
          const std::vector<int> before = map_.replicas[layer][expert];
          Hold(layer, expert, victim);
          for (const int rank : before) {
            if (rank == victim) continue;
            ranks_.at(rank).experts->Drop(layer, expert);
            std::erase(map_.replicas[layer][expert], rank);
          }
          return;
        }
        case 3: {
          if (killed || experts < 2 || turn < 4) return;
          killed = true;
          ranks_.erase(victim);
          std::erase_if(map_.ranks, [&](const auto& entry) { return entry.rank == victim; });
          for (int l = 1; l < layers(); ++l) {
            for (int e = 0; e < kExperts; ++e) {
              std::erase(map_.replicas[l][e], victim);
              if (map_.replicas[l][e].empty()) Hold(l, e, ranks_.rbegin()->first);
            }
          }
          return;
        }
        case 4:
          return Publish();
      }
    };
    const auto prompts = Prompts(attention, seed);
    const auto changed = Compute(prompts, [&](int turn) {
      nemesis(turn);
      if (turn > 200) Publish();
    });
    EXPECT_TRUE(changed == Alone(prompts)) << "seed " << seed;
    for (const auto& [rank, each] : ranks_) {
      lost += each.exchange->counters().dispatches_lost;
      not_here += each.exchange->served().refused_not_here;
    }
  }
  EXPECT_GT(lost, not_here);
  EXPECT_GT(not_here, 0);
}

INSTANTIATE_TEST_SUITE_P(Worlds, ExchangeShapesTest,
                         testing::Values(WorldShape{1, 2}, WorldShape{2, 4}, WorldShape{3, 5}));

TEST_F(ExchangeModelTest, ARankWithBothRolesServesItselfAndOthers) {
  map_ = {.version = {1, 1}};
  map_.replicas.assign(layers(), std::vector<std::vector<int>>(kExperts));
  map_.replicas[0].clear();
  for (int rank = 0; rank < 3; ++rank) AddRank(rank, true, true);
  for (int expert = 0; expert < kExperts; ++expert) {
    Hold(1, expert, expert % 3);
    Hold(2, expert, expert / 4);
  }
  Publish();
  const auto prompts = Prompts(3, 11);
  EXPECT_TRUE(Compute(prompts) == Alone(prompts));
  EXPECT_GT(ranks_.at(1).exchange->served().local_rows, 0);
  EXPECT_GT(ranks_.at(1).exchange->served().rows_served, 0);
}

TEST_F(ExchangeModelTest, AloneItComputesInPlace) {
  map_ = {.version = {1, 1}};
  map_.replicas.assign(layers(), std::vector<std::vector<int>>(kExperts));
  AddRank(0, true, true);
  for (int layer = 1; layer < layers(); ++layer) {
    for (int expert = 0; expert < kExperts; ++expert) Hold(layer, expert, 0);
  }
  Publish();
  const auto prompts = Prompts(1, 5);
  EXPECT_TRUE(Compute(prompts) == Alone(prompts));
  EXPECT_EQ(ranks_.at(0).exchange->counters().dispatches_sent, 0);
}

class DeviceExchangeTest : public ExchangeModelTest {
 protected:
  DeviceExchangeTest()
      : ExchangeModelTest(model::TinyCudaConfig(), kernels::MakeCudaBackend({}).backend) {}
};

// Only one rank steps: a backend has one step at a time.
TEST_F(DeviceExchangeTest, RowsReachADeviceFromEveryMemory) {
  map_ = {.version = {1, 1}};
  map_.replicas.assign(layers(), std::vector<std::vector<int>>(kExperts));
  map_.replicas[0].clear();
  AddRank(0, true, true);
  AddRank(1, false, true);
  for (int expert = 0; expert < kExperts; ++expert) Hold(1, expert, expert % 2);
  Publish();
  auto prompts = Prompts(1, 11);
  prompts[0].resize(20);
  EXPECT_TRUE(Compute(prompts) == Alone(prompts));
  EXPECT_GT(ranks_.at(0).exchange->served().local_rows, 0);
  EXPECT_GT(ranks_.at(1).exchange->served().rows_served, 0);
}

}  // namespace
}  // namespace epic::worker
