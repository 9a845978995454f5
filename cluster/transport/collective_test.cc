// Of any Collective: linked with threads, with a fake of NCCL, and with MPI to be run by mpirun
// -n 4.
#include "cluster/transport/collective.h"

#include <atomic>
#include <vector>

#include "base/sim_loop.h"
#include "cluster/transport/testing/world.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::cluster {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

// The part that `from` sends to `to` in turn `turn`: its length and bytes are known everywhere.
std::vector<std::byte> PartOf(int turn, int from, int to) {
  SeededRandom random(turn * 1000 + from * 10 + to);
  std::vector<std::byte> part(random.Next() % 4 == 0 ? 0 : random.Next() % 70'000);
  for (std::byte& byte : part) byte = static_cast<std::byte>(random.Next());
  return part;
}

struct Exchange {
  std::vector<std::vector<std::byte>> sent, received;
  Collective::Operation operation = 0;
};

Exchange StartTurn(Collective& collective, int turn) {
  Exchange exchange;
  std::vector<std::span<const std::byte>> send;
  std::vector<std::span<std::byte>> receive;
  for (int peer = 0; peer < collective.size(); ++peer) {
    exchange.sent.push_back(PartOf(turn, collective.rank(), peer));
    exchange.received.emplace_back(PartOf(turn, peer, collective.rank()).size());
  }
  for (int peer = 0; peer < collective.size(); ++peer) {
    send.emplace_back(exchange.sent[peer]);
    receive.emplace_back(exchange.received[peer]);
  }
  exchange.operation = collective.StartAllToAll(send, receive);
  return exchange;
}

TEST(Collective, EveryPartArrivesWhereItBelongs) {
  if (!HasWorld(4)) GTEST_SKIP() << "not a world of 4";
  RunWorld(4, [](Collective& collective) {
    ASSERT_EQ(collective.size(), 4);
    for (int turn = 0; turn < 20; ++turn) {
      const Exchange exchange = StartTurn(collective, turn);
      ASSERT_TRUE(Wait(collective, exchange.operation).ok());
      for (int from = 0; from < 4; ++from) {
        EXPECT_TRUE(exchange.received[from] == PartOf(turn, from, collective.rank()))
            << turn << " " << from << " " << collective.rank();
      }
    }
  });
}

TEST(Collective, OperationsThatAreOpenTogetherDoNotMix) {
  if (!HasWorld(4)) GTEST_SKIP() << "not a world of 4";
  RunWorld(4, [](Collective& collective) {
    const int64_t rank = collective.rank();
    std::vector<Exchange> exchanges;
    std::vector<int64_t> sums = {rank, 1, -rank};
    std::vector<int64_t> most = {rank, -rank};
    std::vector<int64_t> least = {7 + rank, 3 - rank};
    const auto summed = collective.StartAllReduce(Reduction::kSum, sums);
    for (int turn = 0; turn < 6; ++turn) exchanges.push_back(StartTurn(collective, 100 + turn));
    const auto maximised = collective.StartAllReduce(Reduction::kMax, most);
    const auto minimised = collective.StartAllReduce(Reduction::kMin, least);
    // In an order of each rank's own.
    for (int i = 0; i < 6; ++i) {
      const size_t turn = (i * 5 + rank) % 6;
      ASSERT_TRUE(Wait(collective, exchanges[turn].operation).ok());
    }
    ASSERT_TRUE(Wait(collective, minimised).ok());
    ASSERT_TRUE(Wait(collective, summed).ok());
    ASSERT_TRUE(Wait(collective, maximised).ok());
    for (int turn = 0; turn < 6; ++turn) {
      for (int from = 0; from < 4; ++from) {
        EXPECT_TRUE(exchanges[turn].received[from] == PartOf(100 + turn, from, collective.rank()));
      }
    }
    EXPECT_THAT(sums, ElementsAre(6, 4, -6));
    EXPECT_THAT(most, ElementsAre(3, 0));
    EXPECT_THAT(least, ElementsAre(7, 0));
  });
}

TEST(Collective, NothingIsDoneBeforeAllRanksHaveCome) {
  if (!HasWorld(4) || !OutlivesAbort()) GTEST_SKIP() << "needs ranks that share memory";
  std::atomic<int> came = 0;
  RunWorld(4, [&](Collective& collective) {
    std::vector<int64_t> values = {1};
    std::vector<std::byte> sent(4), received(4);
    std::vector<std::span<const std::byte>> send;
    std::vector<std::span<std::byte>> receive;
    for (int peer = 0; peer < 4; ++peer) {
      send.push_back(std::span(sent).subspan(peer, 1));
      receive.push_back(std::span(received).subspan(peer, 1));
    }
    ++came;
    ASSERT_TRUE(Wait(collective, collective.StartAllReduce(Reduction::kSum, values)).ok());
    EXPECT_GE(came, 4);
    ++came;
    ASSERT_TRUE(Wait(collective, collective.StartAllToAll(send, receive)).ok());
    EXPECT_EQ(came, 8);
  });
}

TEST(Collective, AnAbortIsHeardByAllInTheWordsOfTheFirst) {
  if (!HasWorld(4) || !OutlivesAbort()) GTEST_SKIP() << "an abort ends this world";
  RunWorld(4, [](Collective& collective) {
    std::vector<int64_t> values = {1};
    absl::Status status;
    for (int turn = 0; status.ok(); ++turn) {
      if (collective.rank() == 2 && turn == 3) {
        collective.Abort("its card is lost");
        collective.Abort("nothing works");
      }
      status = Wait(collective, collective.StartAllReduce(Reduction::kSum, values));
    }
    EXPECT_EQ(status, absl::AbortedError("rank 2: its card is lost"));
    EXPECT_EQ(Wait(collective, collective.StartAllReduce(Reduction::kSum, values)), status);
  });
}

// Run alone, by its name: the world is over after it.
TEST(DISABLED_EndOfTheWorld, Abort) {
  RunWorld(4, [](Collective& collective) {
    std::vector<int64_t> values = {1};
    if (collective.rank() == 2) collective.Abort("its card is lost");
    const auto operation = collective.StartAllReduce(Reduction::kSum, values);
    ADD_FAILURE() << Wait(collective, operation);
  });
}

TEST(Collective, OperationsThatDoNotFitEndTheEpoch) {
  if (!HasWorld(3) || !ComparesOperations()) GTEST_SKIP() << "they are not noticed";
  RunWorld(3, [](Collective& collective) {
    std::vector<int64_t> values(collective.rank() == 1 ? 2 : 1);
    const absl::Status status =
        Wait(collective, collective.StartAllReduce(Reduction::kSum, values));
    EXPECT_THAT(std::string(status.message()), HasSubstr("operation 0 is an all-reduce of"));
  });
  RunWorld(3, [](Collective& collective) {
    std::vector<std::byte> bytes(8);
    std::vector<std::span<const std::byte>> send(3, bytes);
    std::vector<std::span<std::byte>> receive;
    std::vector<std::byte> received(3 * 8);
    for (int from = 0; from < 3; ++from) {
      receive.push_back(std::span(received).subspan(8 * from, 8));
    }
    // Rank 1 sends less than rank 2 expects of it.
    if (collective.rank() == 1) send[2] = send[2].first(5);
    const absl::Status first = Wait(collective, collective.StartAllToAll(send, receive));
    // Who has all its parts may go on to the next operation, and hears of it there.
    const absl::Status status =
        first.ok() ? Wait(collective, collective.StartAllToAll(send, receive)) : first;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("rank 1 sent 5 bytes"), HasSubstr("8 were expected")));
  });
}

}  // namespace
}  // namespace epic::cluster
