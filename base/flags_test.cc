#include "base/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "nlohmann/json.hpp"

namespace epic {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class FlagsTest : public ::testing::Test {
 protected:
  FlagsTest() : app_("A program.") {
    flags_ = FlagsAddedBy(app_, [&] {
      app_.add_option("--row-count,--rows", rows_, "Rows of a step.")->capture_default_str();
      app_.add_option("--dtype", dtype_, "Type of a value.")->check(CLI::IsMember({"auto", "fp8"}));
      app_.add_option("--names", names_, "Names of it.")->delimiter(',');
      app_.add_flag("--eager", eager_, "Do it at once.");
    });
    FinishFlags(app_);
  }
  ~FlagsTest() override {
    for (const char* name : {"EPIC_ROW_COUNT", "EPIC_DTYPE", "EPIC_NAMES", "EPIC_EAGER"}) {
      unsetenv(name);
    }
  }

  CLI::App app_;
  int rows_ = 4;
  std::string dtype_ = "auto";
  std::vector<std::string> names_;
  bool eager_ = false;
  std::vector<CLI::Option*> flags_;
};

TEST_F(FlagsTest, AFlagGoesBeforeItsVariableAndThatBeforeTheDefault) {
  app_.parse("", false);
  EXPECT_EQ(rows_, 4);
  EXPECT_THAT(Forwarded(flags_), IsEmpty());
  setenv("EPIC_ROW_COUNT", "5", 1);
  setenv("EPIC_NAMES", "a,b", 1);
  setenv("EPIC_EAGER", "true", 1);
  app_.parse("", false);
  EXPECT_EQ(rows_, 5);
  EXPECT_THAT(names_, ElementsAre("a", "b"));
  EXPECT_TRUE(eager_);
  EXPECT_THAT(Forwarded(flags_),
              ElementsAre("--row-count", "5", "--names", "a", "--names", "b", "--eager"));
  app_.parse("--rows 6 --names c", false);
  EXPECT_EQ(rows_, 6);
  EXPECT_THAT(names_, ElementsAre("c"));
}

TEST_F(FlagsTest, AVariableIsCheckedAsItsFlag) {
  setenv("EPIC_DTYPE", "fp7", 1);
  EXPECT_THROW(app_.parse("", false), CLI::ValidationError);
}

TEST_F(FlagsTest, ASwitchThatIsOffIsNotForwarded) {
  setenv("EPIC_EAGER", "false", 1);
  app_.parse("", false);
  EXPECT_FALSE(eager_);
  EXPECT_THAT(Forwarded(flags_), IsEmpty());
}

TEST_F(FlagsTest, TheDescriptionHasAllThatIsKnown) {
  const auto described = nlohmann::json::parse(HelpJson(app_));
  ASSERT_EQ(described["flags"].size(), 6u);  // with --help and --help-json
  for (const auto& flag : described["flags"]) {
    if (flag["names"][0] == "--row-count") {
      EXPECT_EQ(flag["names"][1], "--rows");
      EXPECT_EQ(flag["variable"], "EPIC_ROW_COUNT");
      EXPECT_EQ(flag["default"], "4");
      EXPECT_EQ(flag["help"], "Rows of a step.");
    }
    if (flag["names"][0] == "--dtype") {
      EXPECT_THAT(flag["words"], ElementsAre("auto", "fp8"));
    }
  }
}

}  // namespace
}  // namespace epic
