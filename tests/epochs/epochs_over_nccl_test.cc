// Ranks that step together over NCCL, and the coordinator, as in their processes but for threads
// and a fake of NCCL: an epoch ends in the middle of an answer, and the next one goes on with it.
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/check.h"
#include "base/epoll_loop.h"
#include "cluster/grpc/control_client.h"
#include "cluster/grpc/control_server.h"
#include "cluster/transport/testing/fake_nccl.h"
#include "cluster/version.h"
#include "coordinator/core/core.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/testing/tiny_checkpoint.h"
#include "worker/exchange/nccl_epochs.h"
#include "worker/rank/lock_step_policy.h"
#include "worker/rank/rank.h"

namespace epic {
namespace {

constexpr int kRanks = 2;
constexpr int kTokens = 50;

class EpochsOverNcclTest : public testing::Test {
 protected:
  // `replicas_max`: as WorldOptions. The world begins frozen, so that replicas come when the test
  // wants them.
  explicit EpochsOverNcclTest(int replicas_max = 1) : replicas_max_(replicas_max) {
    core_.Freeze(true, [](const absl::Status&) {});
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
    builder.RegisterService(control_.service());
    server_ = builder.BuildAndStart();
    CHECK(server_ != nullptr);
    coordinator_ = RealThreads().Start("coordinator", [this] { loop_.Run(); });
    for (int i = 0; i < kRanks; ++i) {
      ranks_.push_back(RealThreads().Start("rank", [this, i] { RunRank(i); }));
    }
    Await([this] { return core_.status().ready && core_.status().ranks.size() == kRanks; });
  }

  ~EpochsOverNcclTest() override {
    for (int i = 0; i < kRanks; ++i) {
      const absl::MutexLock lock(&mutex_);
      if (drains_[i]) drains_[i]();
    }
    ranks_.clear();
    for (const absl::Status& ended : ended_) EXPECT_EQ(ended, absl::OkStatus());
    EXPECT_EQ(nccl_.held_count(), 0);
    loop_.Post([this] { control_.Close(); });
    loop_.Stop();
    coordinator_.reset();
    server_->Shutdown(std::chrono::system_clock::now());
    std::filesystem::remove(path_);
  }

  void RunRank(int index) {
    worker::WorkerOptions options;
    options.model = model_;
    options.coordinator = address_;
    options.threads = 1;
    options.max_model_len = 512;
    options.max_num_batched_tokens = 16;
    options.max_num_seqs = 4;
    options.kv_cache_bytes = 4 << 20;
    // Room for every expert of the model.
    if (replicas_max_ > 1) options.expert_slots = 1000;
    options = worker::LockStepOptions(options, kRanks);
    const auto plan = worker::MakeRankPlan(options);
    CHECK_OK(plan.status());
    EpollLoop loop(RealClock());
    const std::shared_ptr<cluster::NcclApi> card(&nccl_.card(index), [](auto*) {});
    worker::NcclEpochs epochs(card, RealClock(), RealThreads(), kRanks,
                              [](const std::string& why) { CHECK(false) << why; });
    const Env env{RealClock(), loop, RealRandom(), RealThreads()};
    v1::WorkerIdentity identity = plan->identity();
    identity.set_attention(true);
    identity.set_experts(true);
    std::unique_ptr<worker::LoadedAttention> attention;
    worker::LockStepPolicy policy(*plan, epochs, env.clock);
    worker::Rank rank(
        env, identity,
        [this, env](v1::ControlHello hello, cluster::ControlLinkHandlers handlers) {
          return cluster::DialControl(env, address_, std::move(hello), std::move(handlers));
        },
        policy, {.asks_to_leave = true});
    {
      const absl::MutexLock lock(&mutex_);
      drains_[index] = [&] { loop.Post([&rank] { rank.Drain(); }); };
    }
    attention = *worker::LoadAttention(*plan, env.clock, [&](int64_t bytes) {
      rank.ReportLoading(bytes, policy.bytes_to_load());
      loop.RunOnce(absl::ZeroDuration());
    });
    policy.Start(*attention);
    while (!rank.over()) {
      loop.RunOnce(rank.wait_max());
      rank.Turn();
    }
    ended_[index] = rank.status();
    const absl::MutexLock lock(&mutex_);
    drains_[index] = nullptr;
  }

  static void Await(const std::function<bool()>& done) {
    for (int turn = 0; !done(); ++turn) {
      CHECK(turn < 60'000) << "nothing happens";
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }

  // The tokens of an answer; `midway` is called once when there are some.
  std::vector<int32_t> Ask(const std::function<void()>& midway) {
    coordinator::Request request;
    request.id = "r" + std::to_string(next_++);
    request.prompt = {1, 2, 3, 4, 5, 6, 7};
    request.max_tokens = kTokens;
    request.sampling.set_seed(7);
    const auto stream = core_.Submit(request);
    CHECK_OK(stream.status());
    Await([&] { return (*stream)->Read(0, 0).tokens.size() >= 8; });
    midway();
    Await([&] { return (*stream)->Read(0, 0).finish != v1::FINISH_REASON_NONE; });
    std::vector<int32_t> tokens;
    const coordinator::Slice slice = (*stream)->Read(0, 0);
    EXPECT_EQ(slice.finish, v1::FINISH_REASON_LENGTH) << slice.error;
    for (const coordinator::JournalToken& token : slice.tokens) tokens.push_back(token.token);
    return tokens;
  }

  const int replicas_max_;
  const std::string model_ =
      model::WriteCheckpoint(model::TinyConfig(), model::TinyTensors(model::TinyConfig(), 1));
  const std::string path_ =
      (std::filesystem::temp_directory_path() / ("epic-epochs-" + std::to_string(getpid())))
          .string();
  const std::string address_ = "unix:" + path_;
  cluster::FakeNccl nccl_{kRanks};
  EpollLoop loop_{RealClock()};
  const Env env_{RealClock(), loop_, RealRandom(), RealThreads()};
  coordinator::Core core_{env_,
                          {.names = {"tiny"},
                           .vocab_size = model::TinyConfig().at("vocab_size").get<int>(),
                           .world = {.term = 1, .replicas_max = replicas_max_}},
                          nullptr};
  cluster::ControlServer control_{
      env_,
      {.term = 1, .build_id = cluster::kBuildId},
      [this](const v1::ControlHello& hello, std::unique_ptr<cluster::ControlLink> link) {
        return core_.AddWorker(hello, std::move(link));
      }};
  std::unique_ptr<grpc::Server> server_;
  int next_ = 0;
  absl::Mutex mutex_;
  std::function<void()> drains_[kRanks] ABSL_GUARDED_BY(mutex_);
  absl::Status ended_[kRanks];
  std::unique_ptr<Threads::Handle> coordinator_;
  std::vector<std::unique_ptr<Threads::Handle>> ranks_;
};

TEST_F(EpochsOverNcclTest, TheNextEpochGoesOnWithTheSameTokens) {
  const std::vector<int32_t> expected = Ask([] {});
  ASSERT_EQ(static_cast<int>(expected.size()), kTokens);
  EXPECT_EQ(core_.metrics().resubmissions, 0);

  // NCCL notices a failure on one rank; the other one would wait for ever.
  EXPECT_EQ(Ask([this] { nccl_.FailNext(1, "AsyncError", cluster::NcclResult::kRemoteError); }),
            expected);
  EXPECT_EQ(core_.metrics().resubmissions, 1);
  EXPECT_EQ(core_.metrics().workers_lost, kRanks);

  // The coordinator ends an epoch.
  Await([this] { return core_.status().ready; });
  EXPECT_EQ(Ask([this] { core_.Fence(core_.status().ranks[0].rank, [](const auto&) {}); }),
            expected);
  EXPECT_EQ(core_.metrics().resubmissions, 2);
  EXPECT_EQ(core_.metrics().replay_mismatches, 0);
  EXPECT_EQ(core_.metrics().quarantined, 0);
}

class EpochsWithReplicasTest : public EpochsOverNcclTest {
 protected:
  EpochsWithReplicasTest() : EpochsOverNcclTest(kRanks) {}
};

TEST_F(EpochsWithReplicasTest, ANewerMapTakesEffectBetweenTheWavesOfAnAnswer) {
  const std::vector<int32_t> expected = Ask([] {});
  EXPECT_GT(core_.status().experts_unreplicated, 0);
  EXPECT_EQ(Ask([this] {
              core_.Freeze(false, [](const absl::Status&) {});
              Await([this] { return core_.status().experts_unreplicated == 0; });
            }),
            expected);
  EXPECT_EQ(core_.status().experts_unhosted, 0);
  // Every rank has all experts by now, and its rows stay with it.
  EXPECT_EQ(Ask([] {}), expected);
  EXPECT_EQ(core_.metrics().workers_lost, 0);
  EXPECT_EQ(core_.metrics().resubmissions, 0);
}

}  // namespace
}  // namespace epic
