#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <vector>

#include "base/epoll_loop.h"
#include "base/sim_loop.h"
#include "gtest/gtest.h"

namespace epic {
namespace {

TEST(EpollLoop, RunsTasksOfManyThreadsEachOnce) {
  EpollLoop loop(RealClock());
  constexpr int kThreads = 4, kTasks = 1000;
  int run = 0;
  {
    std::vector<std::unique_ptr<Threads::Handle>> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.push_back(RealThreads().Start("poster", [&] {
        for (int i = 0; i < kTasks; ++i) {
          loop.Post([&] {
            if (++run == kThreads * kTasks) loop.Stop();
          });
        }
      }));
    }
    loop.Run();
  }
  EXPECT_EQ(run, kThreads * kTasks);
}

TEST(EpollLoop, RunsTimersInOrderAndNotTheCancelled) {
  EpollLoop loop(RealClock());
  std::vector<int> order;
  const absl::Time now = RealClock().Now();
  loop.At(now + absl::Milliseconds(4), [&] {
    order.push_back(2);
    loop.Stop();
  });
  loop.At(now + absl::Milliseconds(2), [&] { order.push_back(1); });
  TimerId cancelled = loop.At(now + absl::Milliseconds(3), [&] { order.push_back(99); });
  loop.Cancel(cancelled);
  loop.Run();
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST(EpollLoop, WatchesADescriptorUntilUnwatched) {
  EpollLoop loop(RealClock());
  const int fd = eventfd(1, EFD_NONBLOCK);
  int calls = 0;
  loop.Watch(fd, [&] {
    if (++calls == 3) loop.Unwatch(fd);
  });
  for (int i = 0; i < 6; ++i) loop.RunOnce(absl::ZeroDuration());
  EXPECT_EQ(calls, 3);
  close(fd);
}

TEST(SimLoop, MovesTimeToEachTimer) {
  SimLoop loop;
  const absl::Time start = loop.Now();
  std::vector<absl::Duration> seen;
  loop.At(start + absl::Seconds(2), [&] { seen.push_back(loop.Now() - start); });
  loop.At(start + absl::Seconds(1), [&] {
    seen.push_back(loop.Now() - start);
    loop.Post([&] { seen.push_back(loop.Now() - start); });
  });
  loop.Advance(absl::Seconds(1));
  EXPECT_EQ(seen, (std::vector<absl::Duration>{absl::Seconds(1), absl::Seconds(1)}));
  loop.Advance(absl::Seconds(1));
  EXPECT_EQ(seen.size(), 3u);
}

TEST(SeededRandom, RepeatsFromItsSeed) {
  SeededRandom a(7), b(7), c(8);
  EXPECT_EQ(a.Next(), b.Next());
  EXPECT_NE(a.Next(), c.Next());
}

}  // namespace
}  // namespace epic
