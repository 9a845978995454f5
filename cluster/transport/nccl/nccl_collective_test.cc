// What is NCCL's own; collective_test.cc tests what holds of any Collective.
#include "cluster/transport/nccl/nccl_collective.h"

#include <optional>

#include "base/sim_loop.h"
#include "cluster/transport/testing/fake_nccl.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::cluster {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Three ranks that one thread moves on in turn.
class NcclCollectiveTest : public testing::Test {
 protected:
  static constexpr int kRanks = 3;

  struct Rank {
    std::optional<NcclCollective> collective;
    std::vector<std::string> aborts, stuck;
    std::vector<int64_t> values = {1};
    Collective::Operation operation = 0;
    absl::StatusOr<bool> done = false;
  };

  void SetUp() override { EXPECT_EQ(nccl_.card(0).GetUniqueId(id_), NcclResult::kSuccess); }
  ~NcclCollectiveTest() override {
    nccl_.aborts_hang = false;
    for (Rank& rank : ranks_) {
      if (rank.collective && rank.done.ok()) rank.collective->End("the test is over");
    }
    for (Rank& rank : ranks_) rank.collective.reset();
    EXPECT_EQ(nccl_.held_count(), 0);
  }
  void Form(int rank) {
    Rank& to = ranks_[rank];
    to.collective.emplace(
        nccl_.card(rank), clock_, RealThreads(),
        NcclOptions{.rank = rank, .size = kRanks, .id = id_},
        NcclHandlers{.on_abort = [&to](const std::string& why) { to.aborts.push_back(why); },
                     .on_stuck = [&to](const std::string& why) { to.stuck.push_back(why); }});
  }
  void FormAll() {
    for (int rank = 0; rank < kRanks; ++rank) Form(rank);
  }
  void Start(int rank) {
    Rank& at = ranks_[rank];
    at.values = {1};
    at.operation = at.collective->StartAllReduce(Reduction::kSum, at.values);
    at.done = false;
  }
  void StartAll() {
    for (int rank = 0; rank < kRanks; ++rank) Start(rank);
  }
  // So often that whatever can happen has happened.
  void Turn(std::vector<int> ranks = {0, 1, 2}) {
    for (int turn = 0; turn < 100; ++turn) {
      for (const int rank : ranks) {
        Rank& at = ranks_[rank];
        if (at.done.ok() && !*at.done) at.done = at.collective->Done(at.operation);
      }
    }
  }
  // Until the epoch has ended for the rank; its abort has a thread of its own.
  absl::Status EndOf(int rank) {
    Rank& at = ranks_[rank];
    while (at.done.ok() && !*at.done) at.done = at.collective->Done(at.operation);
    return at.done.status();
  }

  SimLoop clock_;
  FakeNccl nccl_{kRanks, 7};
  NcclUniqueId id_;
  Rank ranks_[kRanks];
};

TEST_F(NcclCollectiveTest, OperationsWaitUntilTheCommunicatorIsFormed) {
  Form(0);
  Form(1);
  Start(0);
  Start(1);
  Turn({0, 1});
  EXPECT_FALSE(*ranks_[0].done);
  Form(2);
  Start(2);
  Turn();
  for (const Rank& rank : ranks_) {
    EXPECT_TRUE(*rank.done);
    EXPECT_THAT(rank.values, ElementsAre(3));
  }
}

TEST_F(NcclCollectiveTest, MemoryThatTheCardReachesIsUsedWhereItLies) {
  std::vector<std::byte> sent(kRanks * 8), received(kRanks * 8);
  for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<std::byte>(i);
  nccl_.AddDeviceMemory(sent.data(), sent.size());
  nccl_.AddDeviceMemory(received.data(), received.size());
  FormAll();
  for (Rank& rank : ranks_) {
    const int self = rank.collective->rank();
    std::vector<std::span<const std::byte>> send(kRanks);
    std::vector<std::span<std::byte>> receive(kRanks);
    // Each to the next.
    send[(self + 1) % kRanks] = std::span(sent).subspan(self * 8, 8);
    receive[(self + 2) % kRanks] = std::span(received).subspan(self * 8, 8);
    rank.operation = rank.collective->StartAllToAll(send, receive);
  }
  Turn();
  EXPECT_EQ(nccl_.pinned_count(), 0);
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_TRUE(*ranks_[rank].done);
    EXPECT_EQ(received[rank * 8 + 3], sent[(rank + 2) % kRanks * 8 + 3]);
  }
}

TEST_F(NcclCollectiveTest, PinnedBlocksAreUsedAgain) {
  FormAll();
  for (int turn = 0; turn < 20; ++turn) {
    StartAll();
    Turn();
    ASSERT_TRUE(*ranks_[2].done);
  }
  EXPECT_EQ(nccl_.pinned_count(), kRanks);
}

TEST_F(NcclCollectiveTest, ADeathThatNcclNoticesEndsTheEpochInItsWords) {
  FormAll();
  StartAll();
  Turn({0, 1});
  nccl_.Kill(2, /*noticed=*/true);
  EXPECT_EQ(EndOf(0), absl::AbortedError("rank 0: the communicator: error 6"));
  EXPECT_THAT(ranks_[0].aborts, ElementsAre("rank 0: the communicator: error 6"));
}

TEST_F(NcclCollectiveTest, ADeathThatNcclDoesNotNoticeEndsTheEpochOnceTheCoordinatorTells) {
  FormAll();
  StartAll();
  nccl_.Kill(2, /*noticed=*/false);
  Turn({0, 1});
  EXPECT_FALSE(*ranks_[0].done);
  for (const int rank : {0, 1}) {
    ranks_[rank].collective->End("rank 2: gone");
    EXPECT_EQ(EndOf(rank), absl::AbortedError("rank 2: gone"));
    EXPECT_TRUE(ranks_[rank].collective->Ended());
    // The others know.
    EXPECT_THAT(ranks_[rank].aborts, IsEmpty());
  }
}

TEST_F(NcclCollectiveTest, ARankThatNeverComesIsNoTrap) {
  Form(0);
  Start(0);
  Turn({0});
  ranks_[0].collective->End("rank 2 did not come");
  EXPECT_EQ(EndOf(0), absl::AbortedError("rank 2 did not come"));
}

TEST_F(NcclCollectiveTest, TheErrorIsHeardWhenTheCardHasLetGoOfTheBuffers) {
  FormAll();
  StartAll();
  nccl_.aborts_hang = true;
  ranks_[1].collective->Abort("nothing works");
  EXPECT_THAT(ranks_[1].aborts, ElementsAre("rank 1: nothing works"));
  Turn({1});
  EXPECT_FALSE(*ranks_[1].done);
  EXPECT_FALSE(ranks_[1].collective->Ended());
  // What starts meanwhile waits for the end too.
  Start(1);
  Turn({1});
  EXPECT_FALSE(*ranks_[1].done);
  nccl_.aborts_hang = false;
  EXPECT_EQ(EndOf(1), absl::AbortedError("rank 1: nothing works"));
  EXPECT_THAT(ranks_[1].stuck, IsEmpty());
}

TEST_F(NcclCollectiveTest, AnAbortThatDoesNotReturnEndsTheProcessAtItsDeadlineOnce) {
  FormAll();
  StartAll();
  nccl_.aborts_hang = true;
  ranks_[1].collective->Abort("nothing works");
  clock_.Advance(absl::Seconds(9));
  Turn({1});
  EXPECT_THAT(ranks_[1].stuck, IsEmpty());
  clock_.Advance(absl::Seconds(1));
  Turn({1});
  EXPECT_THAT(ranks_[1].stuck, ElementsAre(HasSubstr("within 10s (rank 1: nothing works)")));
}

TEST_F(NcclCollectiveTest, AnyCallThatFailsEndsTheEpoch) {
  const std::pair<const char*, const char*> calls[] = {
      {"GroupStart", "ncclGroupStart"},
      {"AllReduce", "ncclGroupEnd"},
      {"GroupEnd", "ncclGroupEnd"},
      {"Mark", "cudaEventRecord"},
      {"Reached", "the card"},
      {"AsyncError", "the communicator"},
      {"AllocatePinned", "no 65536 bytes"},
  };
  for (const auto& [call, said] : calls) {
    FormAll();
    nccl_.FailNext(1, call, NcclResult::kSystemError);
    StartAll();
    EXPECT_THAT(std::string(EndOf(1).message()), HasSubstr(said)) << call;
    EXPECT_EQ(ranks_[1].aborts.size(), 1u) << call;
    for (Rank& rank : ranks_) rank.collective->End("rank 1 failed");
    for (Rank& rank : ranks_) rank.collective.reset();
    for (Rank& rank : ranks_) rank.aborts.clear();
    EXPECT_EQ(nccl_.held_count(), 0) << call;
    ASSERT_EQ(nccl_.card(0).GetUniqueId(id_), NcclResult::kSuccess);
  }
}

TEST_F(NcclCollectiveTest, ACommunicatorThatCannotBeBegunNeedsNoAbort) {
  nccl_.FailNext(0, "InitRank", NcclResult::kInvalidUsage);
  Form(0);
  EXPECT_THAT(ranks_[0].aborts, ElementsAre("rank 0: ncclCommInitRankConfig: error 5"));
  EXPECT_TRUE(ranks_[0].collective->Ended());
  Start(0);
  EXPECT_EQ(EndOf(0).code(), absl::StatusCode::kAborted);
}

TEST_F(NcclCollectiveTest, TheNextEpochIsANewCommunicator) {
  for (int epoch = 0; epoch < 3; ++epoch) {
    FormAll();
    StartAll();
    Turn();
    for (Rank& rank : ranks_) {
      EXPECT_TRUE(*rank.done);
      rank.collective->End("enough");
      rank.collective.reset();
    }
    EXPECT_EQ(nccl_.held_count(), 0);
    ASSERT_EQ(nccl_.card(epoch).GetUniqueId(id_), NcclResult::kSuccess);
  }
}

}  // namespace
}  // namespace epic::cluster
