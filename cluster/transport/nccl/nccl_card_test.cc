// NCCL itself, in a world of one, on a card. Exit status 77 without one: skipped.
#include <chrono>
#include <cstdio>
#include <thread>

#include "base/check.h"
#include "base/env.h"
#include "cluster/transport/nccl/cuda_nccl.h"
#include "cluster/transport/nccl/nccl_collective.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::cluster {
namespace {

NcclApi* g_card = nullptr;

// An epoch of `size` of which this process is rank 0.
class Epoch {
 public:
  explicit Epoch(int size) {
    NcclUniqueId id;
    CHECK(g_card->GetUniqueId(id) == NcclResult::kSuccess);
    collective_ = std::make_unique<NcclCollective>(
        *g_card, RealClock(), RealThreads(), NcclOptions{.size = size, .id = id},
        NcclHandlers{.on_stuck = [](const std::string& why) { CHECK(false) << why; }});
  }
  NcclCollective& operator*() { return *collective_; }
  absl::Status Wait(Collective::Operation operation) {
    while (true) {
      const absl::StatusOr<bool> done = collective_->Done(operation);
      if (!done.ok()) return done.status();
      if (*done) return absl::OkStatus();
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

 private:
  std::unique_ptr<NcclCollective> collective_;
};

TEST(NcclCard, AWorldOfOneExchangesWithItself) {
  Epoch epoch(1);
  for (int turn = 0; turn < 20; ++turn) {
    std::vector<int64_t> values = {turn, -turn};
    ASSERT_EQ(epoch.Wait((*epoch).StartAllReduce(Reduction::kMax, values)), absl::OkStatus());
    EXPECT_THAT(values, testing::ElementsAre(turn, -turn));
    // In the host's memory, and in memory that the card reaches.
    const size_t bytes = 1000 * turn;
    std::vector<std::byte> sent(bytes), received(bytes);
    for (size_t i = 0; i < bytes; ++i) sent[i] = static_cast<std::byte>(i * 7 + turn);
    std::byte* const pinned = g_card->AllocatePinned(bytes + 1);
    ASSERT_NE(pinned, nullptr);
    const std::span<const std::byte> send(sent);
    const std::span<std::byte> middle(pinned, bytes), receive(received);
    ASSERT_EQ(epoch.Wait((*epoch).StartAllToAll({&send, 1}, {&middle, 1})), absl::OkStatus());
    const std::span<const std::byte> again = middle;
    ASSERT_EQ(epoch.Wait((*epoch).StartAllToAll({&again, 1}, {&receive, 1})), absl::OkStatus());
    EXPECT_TRUE(sent == received);
    g_card->FreePinned(pinned);
  }
}

TEST(NcclCard, AForcedAbortReturnsAndTheNextEpochWorks) {
  for (int turn = 0; turn < 3; ++turn) {
    Epoch epoch(1);
    std::vector<int64_t> values = {1};
    ASSERT_EQ(epoch.Wait((*epoch).StartAllReduce(Reduction::kSum, values)), absl::OkStatus());
    (*epoch).StartAllReduce(Reduction::kSum, values);
    (*epoch).Abort("forced");
    EXPECT_EQ(epoch.Wait((*epoch).StartAllReduce(Reduction::kSum, values)),
              absl::AbortedError("rank 0: forced"));
  }
}

TEST(NcclCard, AnEpochWhoseOtherRankNeverComesCanBeEnded) {
  Epoch epoch(2);
  std::vector<int64_t> values = {1};
  const auto operation = (*epoch).StartAllReduce(Reduction::kSum, values);
  for (int turn = 0; turn < 1000; ++turn) ASSERT_EQ(*(*epoch).Done(operation), false);
  (*epoch).End("rank 1 did not come");
  EXPECT_EQ(epoch.Wait(operation), absl::AbortedError("rank 1 did not come"));
}

}  // namespace
}  // namespace epic::cluster

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  const auto card = epic::cluster::OpenCudaNccl(0);
  if (!card.ok()) {
    std::printf("skipped: %s\n", std::string(card.status().message()).c_str());
    return 77;
  }
  epic::cluster::g_card = card->get();
  return RUN_ALL_TESTS();
}
