#include "coordinator/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace epic::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class ApiKeysTest : public ::testing::Test {
 protected:
  ~ApiKeysTest() override { std::filesystem::remove(path_); }

  std::string File(const std::string& text) {
    std::ofstream(path_) << text;
    return path_;
  }

  const std::string path_ =
      (std::filesystem::temp_directory_path() / ("api-keys-" + std::to_string(getpid()))).string();
};

TEST_F(ApiKeysTest, EverySourceAddsItsKeys) {
  EXPECT_THAT(*ReadApiKeys({}), IsEmpty());
  EXPECT_THAT(*ReadApiKeys({.flags = {"a", "b"},
                            .file = File("c\n\n  d \r\n"),
                            .several = "e,f\ng,",
                            .single = "h"}),
              ElementsAre("a", "b", "c", "d", "e", "f", "g", "h"));
}

TEST_F(ApiKeysTest, ASourceWithoutAKeyIsRefusedByName) {
  for (const auto& [sources, name] : std::vector<std::pair<ApiKeySources, std::string>>{
           {{.flags = {""}}, "--api-key"},
           {{.flags = {"a", " "}}, "--api-key"},
           {{.file = File("\n\n")}, "--api-key-file " + path_},
           {{.several = ""}, "EPIC_API_KEYS"},
           {{.several = ",,"}, "EPIC_API_KEYS"},
           {{.single = ""}, "EPIC_API_KEY"}}) {
    const auto keys = ReadApiKeys(sources);
    ASSERT_FALSE(keys.ok());
    EXPECT_EQ(keys.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(keys.status().message()), HasSubstr(name));
  }
}

TEST_F(ApiKeysTest, AKeyThatNoClientCanSendIsRefusedAndNotShown) {
  for (const char* key : {"a b", "a,b", "k\xc3\xa9y", "a\tb"}) {
    const auto keys = ReadApiKeys({.flags = {key}});
    ASSERT_FALSE(keys.ok()) << key;
    EXPECT_THAT(std::string(keys.status().message()), ::testing::Not(HasSubstr(key)));
  }
}

TEST_F(ApiKeysTest, AFileThatCannotBeReadIsTold) {
  for (const std::string& path : {path_ + "-missing", std::string("/")}) {
    const auto keys = ReadApiKeys({.file = path});
    ASSERT_FALSE(keys.ok()) << path;
    EXPECT_THAT(std::string(keys.status().message()), HasSubstr(path));
  }
}

}  // namespace
}  // namespace epic::coordinator
