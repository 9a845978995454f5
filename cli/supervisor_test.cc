#include "cli/supervisor.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>

namespace epic::cli {
namespace {

Supervisor::Child Shell(const std::string& script) {
  return {.name = "child", .command = {"/bin/sh", "-c", script}};
}

class SupervisorTest : public testing::Test {
 protected:
  SupervisorTest() { std::filesystem::remove(log_); }
  ~SupervisorTest() override { std::filesystem::remove(log_); }
  // How often the script said something.
  int Lines() const {
    std::ifstream file(log_);
    int lines = 0;
    for (std::string line; std::getline(file, line);) ++lines;
    return lines;
  }
  const std::string log_ =
      (std::filesystem::temp_directory_path() / ("supervisor-" + std::to_string(getpid())))
          .string();
};

TEST_F(SupervisorTest, AnErrorBeforeReadinessEndsAllWithItsCode) {
  Supervisor supervisor(RealClock(), {Shell("exec sleep 1000"), Shell("exit 7")});
  EXPECT_EQ(supervisor.Run([] {}), 7);
}

// A second passes with every look at it.
class FastClock : public Clock {
 public:
  absl::Time Now() const override { return now_ += absl::Seconds(1); }

 private:
  mutable absl::Time now_ = absl::UnixEpoch();
};

// Runs until `done`, then asks the supervisor to end.
int RunUntil(Supervisor& supervisor, const std::function<bool()>& done) {
  supervisor.SetReady();
  return supervisor.Run([&] {
    if (done() && !supervisor.ending()) kill(getpid(), SIGINT);
  });
}

TEST_F(SupervisorTest, AChildThatDiesTenTimesIsStartedAgainAndTheOthersGoOn) {
  FastClock clock;
  const std::string lives = log_ + "-lives";
  Supervisor supervisor(clock, {Shell("echo x >> " + lives + "; exec sleep 1000"),
                                Shell("echo x >> " + log_ + "; kill -KILL $$")});
  EXPECT_EQ(RunUntil(supervisor, [&] { return Lines() > 10; }), 0);
  std::ifstream file(lives);
  std::string line;
  EXPECT_TRUE(std::getline(file, line));
  EXPECT_FALSE(std::getline(file, line)) << "the other child was started again";
  std::filesystem::remove(lives);
}

TEST_F(SupervisorTest, AChildThatKeepsDyingIsStartedEverMoreSlowly) {
  Supervisor supervisor(RealClock(), {Shell("echo x >> " + log_ + "; exit 3")});
  const absl::Time end = RealClock().Now() + absl::Seconds(3);
  EXPECT_EQ(RunUntil(supervisor, [&] { return RealClock().Now() > end; }), 0);
  // Starts after 0, 0.1, 0.3, 0.7, 1.5 and 3.1 s.
  EXPECT_GE(Lines(), 3);
  EXPECT_LE(Lines(), 6);
}

TEST_F(SupervisorTest, AnEssentialChildThatCannotStartEndsAll) {
  Supervisor::Child child = Shell("echo x >> " + log_ + "; kill -KILL $$");
  child.essential = true;
  Supervisor supervisor(RealClock(), {child, Shell("exec sleep 1000")});
  EXPECT_EQ(supervisor.Run([] {}), 128 + SIGKILL);
  EXPECT_EQ(Lines(), Supervisor::kStartsMax);
}

TEST_F(SupervisorTest, TheEnvironmentOfAChildIsItsOwn) {
  setenv("EPIC_SUPERVISOR_TEST", "parent", 1);
  Supervisor::Child child =
      Shell("[ \"$EPIC_SUPERVISOR_TEST\" = child ] && [ -n \"$PATH\" ] && exit 7; exit 8");
  child.environment = {"EPIC_SUPERVISOR_TEST=child"};
  Supervisor supervisor(RealClock(), {child});
  EXPECT_EQ(supervisor.Run([] {}), 7);
  unsetenv("EPIC_SUPERVISOR_TEST");
}

TEST_F(SupervisorTest, ADeathWhileEndingAsksNobodyTwice) {
  const std::string patient =
      "trap 'echo x >> " + log_ +
      "' TERM; n=0; while [ $n -lt 12 ]; do sleep 0.05; n=$((n+1)); done";
  // The first ends by itself, after the second has died and whatever it is asked.
  Supervisor supervisor(RealClock(), {Shell(patient), Shell("sleep 0.4")});
  int polls = 0;
  supervisor.SetReady();
  EXPECT_EQ(supervisor.Run([&] {
    if (++polls == 3) kill(getpid(), SIGINT);
  }),
            0);
  EXPECT_EQ(Lines(), 1);
}

TEST_F(SupervisorTest, ASignalAsksTheChildrenToEndOneAfterAnother) {
  const std::string script =
      "trap 'echo x >> " + log_ + "; exit 0' TERM; while :; do sleep 0.05; done";
  Supervisor supervisor(RealClock(), {Shell(script), Shell(script)});
  int polls = 0;
  EXPECT_EQ(supervisor.Run([&] {
    if (++polls == 10) kill(getpid(), SIGINT);
  }),
            0);
  EXPECT_EQ(Lines(), 2);
}

TEST_F(SupervisorTest, AChildThatDoesNotEndIsKilled) {
  Supervisor::Child deaf = Shell("trap '' TERM; kill -STOP $$; sleep 1000");
  deaf.grace = absl::Milliseconds(200);
  Supervisor supervisor(RealClock(), {deaf, Shell("exec sleep 1000")});
  int polls = 0;
  EXPECT_EQ(supervisor.Run([&] {
    if (++polls == 10) kill(getpid(), SIGINT);
  }),
            0);
}

}  // namespace
}  // namespace epic::cli
