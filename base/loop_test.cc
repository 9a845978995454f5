#include <sys/epoll.h>
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

class RecordedSleeper : public Sleeper {
 public:
  absl::Duration BeforeSleep() override {
    ++before;
    return limit;
  }
  void AfterSleep(bool timed_out) override {
    ++after;
    timed_out_count += timed_out;
  }

  absl::Duration limit = absl::Milliseconds(1);
  int before = 0, after = 0, timed_out_count = 0;
};

TEST(EpollLoop, AsksTheSleeperBeforeItWaitsAndTellsItAfter) {
  EpollLoop loop(RealClock());
  RecordedSleeper sleeper;
  loop.SetSleeper(&sleeper);
  loop.RunOnce(absl::InfiniteDuration());  // ends by the sleeper's limit
  EXPECT_EQ(sleeper.before, 1);
  EXPECT_EQ(sleeper.timed_out_count, 1);
  sleeper.limit = absl::ZeroDuration();  // work already
  loop.RunOnce(absl::InfiniteDuration());
  EXPECT_EQ(sleeper.before, 2);
  EXPECT_EQ(sleeper.timed_out_count, 1);
  loop.RunOnce(absl::ZeroDuration());  // will not sleep: not asked
  EXPECT_EQ(sleeper.before, 2);
  sleeper.limit = absl::InfiniteDuration();
  loop.Post([] {});
  loop.RunOnce(absl::InfiniteDuration());  // a descriptor ends the sleep
  EXPECT_EQ(sleeper.timed_out_count, 1);
  EXPECT_EQ(sleeper.after, 4);
}

TEST(EpollSet, TellsEventsAndNestsInAnother) {
  EpollSet inner, outer;
  UniqueFd fd(eventfd(0, EFD_NONBLOCK));
  uint32_t seen = 0;
  inner.Watch(fd.get(), EPOLLIN, [&](uint32_t events) { seen = events; });
  int inner_ready = 0;
  outer.Watch(inner.fd(), EPOLLIN, [&](uint32_t) { inner_ready += inner.Wait({}); });
  EXPECT_EQ(outer.Wait({}), 0);
  inner.SetEvents(fd.get(), EPOLLIN | EPOLLOUT);
  EXPECT_EQ(outer.Wait({}), 1);
  EXPECT_EQ(inner_ready, 1);
  EXPECT_EQ(seen, static_cast<uint32_t>(EPOLLOUT));
  inner.Unwatch(fd.get());
  EXPECT_EQ(outer.Wait({}), 0);
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
