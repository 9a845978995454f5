#include "cli/supervisor.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

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

TEST_F(SupervisorTest, AKilledChildIsStartedAgainUntilItDiesTooOften) {
  Supervisor supervisor(RealClock(), {Shell("echo x >> " + log_ + "; kill -KILL $$")});
  EXPECT_EQ(supervisor.Run([&] { supervisor.SetReady(); }), 128 + SIGKILL);
  EXPECT_EQ(Lines(), Supervisor::kDeathsMax);
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
