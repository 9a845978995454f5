// Ranks as processes that are killed, and stopped, at any moment. The test's own program, started
// again, is the other rank: it sends back what it gets.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <deque>
#include <iostream>
#include <sstream>

#include "base/check.h"
#include "base/log.h"
#include "cluster/transport/testing/node.h"
#include "gtest/gtest.h"

namespace epic::cluster {
namespace {

constexpr char kEcho[] = "--echo";

WireChoice WiresOf(const std::string& name) {
  return name == "shm" ? WireChoice::kShm : WireChoice::kTcp;
}

// Arguments: wires, run_dir, and the other's rank, generation and address. Tells its own generation
// and address on stdout. Ends with the other.
int Echo(const std::vector<std::string>& arguments) {
  InitLog("echo", "error");  // stdout is a pipe that closes
  const std::string& run_dir = arguments[1];
  Node node(2, {.wires = WiresOf(arguments[0]), .run_dir = run_dir});
  RankAddress other;
  other.rank = std::stoi(arguments[2]);
  other.generation = std::stoull(arguments[3]);
  other.host = "here";
  other.run_dir = run_dir;
  other.address = arguments[4] == "-" ? "" : arguments[4];
  other.pair_key = "key";
  std::printf("%llu %s\n", static_cast<unsigned long long>(node.generation()),
              node.entry().address.empty() ? "-" : node.entry().address.c_str());
  std::fflush(stdout);
  node.on_frame = [&](int peer, const FrameHeader& header, Bytes payload) {
    CHECK(std::ranges::equal(payload, Pattern(header.dispatch, payload.size())));
    FrameHeader back = header;
    back.kind = FrameKind::kCombine;
    CHECK(node.transport().Send(peer, back, std::span(&payload, 1)) || node.downs[peer] == 0);
  };
  node.SetPeers({other});
  while (node.downs[other.rank] == 0 && getppid() != 1) node.loop().RunOnce(absl::Seconds(1));
  return 0;
}

class Child {
 public:
  Child(const std::string& wires, const std::string& run_dir, const Node& parent) {
    int out[2];
    CHECK(pipe2(out, O_CLOEXEC) == 0);
    const RankAddress entry = parent.entry();
    const std::string rank = std::to_string(entry.rank);
    const std::string generation = std::to_string(entry.generation);
    const std::string address = entry.address.empty() ? "-" : entry.address;
    const char* arguments[] = {"process_test",  kEcho,        wires.c_str(),
                               run_dir.c_str(), rank.c_str(), generation.c_str(),
                               address.c_str(), nullptr};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    CHECK(posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr,
                      const_cast<char* const*>(arguments), environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    FILE* told = fdopen(out[0], "r");
    unsigned long long its_generation = 0;
    char its_address[100] = "";
    CHECK(std::fscanf(told, "%llu %99s", &its_generation, its_address) == 2) << "the child died";
    std::fclose(told);
    entry_ = entry;
    entry_.rank = 2;
    entry_.generation = its_generation;
    entry_.address = std::strcmp(its_address, "-") == 0 ? "" : its_address;
  }
  ~Child() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

  const RankAddress& entry() const { return entry_; }
  void Signal(int signal) { CHECK(kill(pid_, signal) == 0); }

 private:
  pid_t pid_ = 0;
  RankAddress entry_;
};

class Killed : public ::testing::TestWithParam<std::string> {
 protected:
  Killed() : parent_(1, {.wires = WiresOf(GetParam()), .run_dir = folder_.path()}) {
    parent_.on_frame = [this](int, const FrameHeader& header, Bytes payload) {
      ASSERT_FALSE(sent_.empty());
      const auto [number, bytes] = sent_.front();
      sent_.pop_front();
      ASSERT_EQ(header.dispatch, number);
      ASSERT_EQ(header.kind, FrameKind::kCombine);
      ASSERT_EQ(payload.size(), bytes);
      ASSERT_TRUE(std::ranges::equal(payload, Pattern(number, bytes)));
      ++echoes_;
    };
  }

  // Keeps some frames under way until `done`.
  void Exchange(const std::function<bool()>& done) {
    ASSERT_TRUE(RunUntil({&parent_}, [&] {
      while (sent_.size() < 8 && parent_.transport().up(2)) {
        const size_t bytes = random_.Next() % (size_t{1} << random_.Next() % 20);
        sent_.push_back({++number_, bytes});
        EXPECT_TRUE(parent_.SendPattern(2, number_, bytes));
      }
      return done() || HasFailure();
    })) << parent_.transport().link(2);
  }
  void ExchangeFrames(int count) {
    const int64_t end = echoes_ + count;
    Exchange([&] { return echoes_ >= end; });
  }

  TestFolder folder_;
  SeededRandom random_{2026};
  Node parent_;
  std::deque<std::pair<uint64_t, size_t>> sent_;
  uint64_t number_ = 0;
  int64_t echoes_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Wires, Killed, ::testing::Values("tcp", "shm"),
                         [](const auto& info) { return info.param; });

TEST_P(Killed, AtAnyMoment) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr int kCycles = 100;
#else
  constexpr int kCycles = 1000;
#endif
  absl::Duration longest;
  int descriptors = 0, never_up = 0;
  int64_t resident = 0;
  for (int cycle = 0; cycle < kCycles && !HasFailure(); ++cycle) {
    if (cycle == 10) {
      RunRounds({&parent_}, 10);
      descriptors = DescriptorCount();
      resident = ResidentBytes();
    }
    Child child(GetParam(), folder_.path(), parent_);
    parent_.SetPeers({child.entry()});
    const int downs = parent_.downs[2];
    if (random_.Next() % 8 != 0) ExchangeFrames(random_.Next() % 30);
    // Somewhere within what happens next.
    const absl::Time moment =
        RealClock().Now() + absl::Microseconds(static_cast<int64_t>(random_.Next() % 3000));
    Exchange([&] { return RealClock().Now() >= moment; });
    const bool stopped = random_.Next() % 4 == 0;
    if (stopped) child.Signal(SIGSTOP);
    const bool was_up = parent_.transport().up(2);
    child.Signal(SIGKILL);
    if (was_up) {
      const absl::Time killed = RealClock().Now();
      Exchange([&] { return parent_.downs[2] > downs; });
      longest = std::max(longest, RealClock().Now() - killed);
      EXPECT_TRUE(absl::IsUnavailable(parent_.last_down[2])) << parent_.last_down[2];
    } else {
      ++never_up;
    }
    EXPECT_EQ(parent_.downs[2], downs + was_up);
    sent_.clear();
    parent_.SetPeers({});
  }
  // The last one may have knocked as it died; that is closed when it is read.
  EXPECT_TRUE(RunUntil({&parent_}, [&] { return DescriptorCount() <= descriptors; }))
      << DescriptorCount() << " descriptors, " << descriptors << " after ten";
  EXPECT_LT(never_up, kCycles / 2);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(ResidentBytes() - resident, 16 << 20);  // queues may hold 4 MiB
#endif
  // Not judged: a process may be killed, or lose its core, between publishing and ringing.
  std::cout << "longest from kill to down: " << absl::FormatDuration(longest) << ", " << never_up
            << " killed before they were up, " << parent_.transport().doorbell_rescues()
            << " rescued by the timer" << std::endl;
}

// A stopped process is not gone: nothing is lost, all goes on when it does.
TEST_P(Killed, AStopIsNoDeath) {
  Child child(GetParam(), folder_.path(), parent_);
  parent_.SetPeers({child.entry()});
  for (int round = 0; round < 10; ++round) {
    ExchangeFrames(random_.Next() % 20);
    child.Signal(SIGSTOP);
    Exchange([rounds = 0]() mutable { return ++rounds > 30; });
    EXPECT_TRUE(parent_.transport().up(2));
    child.Signal(SIGCONT);
    ExchangeFrames(20);
  }
  EXPECT_EQ(parent_.downs[2], 0);
  child.Signal(SIGSTOP);
  child.Signal(SIGKILL);
  ASSERT_TRUE(RunUntil({&parent_}, [&] { return parent_.downs[2] == 1; }));
}

}  // namespace
}  // namespace epic::cluster

int main(int argument_count, char** arguments) {
  if (argument_count == 7 && std::strcmp(arguments[1], epic::cluster::kEcho) == 0) {
    return epic::cluster::Echo({arguments + 2, arguments + argument_count});
  }
  epic::InitLog("test", "warning");
  testing::InitGoogleTest(&argument_count, arguments);
  return RUN_ALL_TESTS();
}
