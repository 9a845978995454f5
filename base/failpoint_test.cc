#include "base/failpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

namespace epic {
namespace {

using testing::HasSubstr;

TEST(FailpointDeathTest, KillsAtThatPassOfThatPlace) {
  const auto pass = [](int times) {
    ASSERT_TRUE(ArmFailpoint("combine-sent:kill@3", "").ok());
    for (int i = 0; i < times; ++i) {
      Pass(Failpoint::kCombineReceived);
      Pass(Failpoint::kCombineSent);
    }
    _exit(7);
  };
  EXPECT_EXIT(pass(2), testing::ExitedWithCode(7), "");
  EXPECT_EXIT(pass(3), testing::KilledBySignal(SIGKILL), "");
}

TEST(FailpointDeathTest, OnlyOneProcessFails) {
  const std::string once = testing::TempDir() + "/once-" + std::to_string(getpid());
  const auto pass = [&] {
    ASSERT_TRUE(ArmFailpoint("map-taken:kill@1", once).ok());
    Pass(Failpoint::kMapTaken);
    _exit(7);
  };
  EXPECT_EXIT(pass(), testing::KilledBySignal(SIGKILL), "");
  EXPECT_EXIT(pass(), testing::ExitedWithCode(7), "");
  std::filesystem::remove(once);
}

TEST(Failpoint, RefusesWhatItDoesNotKnow) {
  EXPECT_TRUE(ArmFailpoint("", "").ok());
  const auto error = [](const std::string& text) {
    return std::string(ArmFailpoint(text, "").message());
  };
  EXPECT_THAT(error("somewhere:kill@1"), HasSubstr("somewhere is none of dispatch-sent, "));
  EXPECT_THAT(error("map-taken:kill@0"), HasSubstr("kill@0 is not kill@N"));
  EXPECT_THAT(error("map-taken:burn@1"), HasSubstr("burn@1"));
  EXPECT_THAT(error("map-taken"), HasSubstr("is not kill@N"));
}

}  // namespace
}  // namespace epic
