#include "coordinator/frontend/browser_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace epic::coordinator {
namespace {

using ::testing::HasSubstr;

TEST(BrowserRulesTest, PagesOfTheSameHostAndOfLoopbackMayAskByDefault) {
  const BrowserRules rules;
  for (const char* origin :
       {"http://localhost:3000", "https://localhost", "http://127.0.0.1:5173", "http://[::1]:80",
        "http://app.localhost", "http://epic.example:8000"}) {
    EXPECT_EQ(rules.AllowedOrigin(origin, "epic.example:8000"), origin);
  }
  for (const char* origin : {"", "null", "https://evil.example", "http://localhost.evil.example",
                             "http://127.evil.example", "http://epic.example:9000", "file://"}) {
    EXPECT_EQ(rules.AllowedOrigin(origin, "epic.example:8000"), "") << origin;
  }
}

TEST(BrowserRulesTest, OriginsThatAreNamedReplaceTheLoopbackPages) {
  const BrowserRules rules({.origins = {"https://chat.example", "null"}});
  EXPECT_EQ(rules.AllowedOrigin("https://chat.example", "x"), "https://chat.example");
  EXPECT_EQ(rules.AllowedOrigin("null", "x"), "null");
  EXPECT_EQ(rules.AllowedOrigin("http://x", "x"), "http://x");
  EXPECT_EQ(rules.AllowedOrigin("http://localhost:3000", "x"), "");
  EXPECT_EQ(rules.AllowedOrigin("http://chat.example", "x"), "");
  const BrowserRules all({.origins = {"*"}});
  EXPECT_EQ(all.AllowedOrigin("https://any.example", "x"), "*");
  EXPECT_EQ(all.AllowedOrigin("", "x"), "");
}

TEST(BrowserRulesTest, ALoopbackListenerRefusesNamesThatSomebodyMayOwn) {
  const BrowserRules rules({.hosts = {"epic.example"}});
  for (const char* host :
       {"", "localhost:8000", "LOCALHOST", "127.0.0.1:8000", "127.0.0.1", "[::1]:8000", "x",
        "10.0.0.7:8000", "a.localhost:1", "epic.example", "Epic.Example.:8000"}) {
    EXPECT_TRUE(rules.CheckHost(host).ok()) << host;
  }
  for (const char* host : {"evil.example", "evil.example:8000", "127.0.0.1.evil.example",
                           "localhost.evil.example", "other.epic.example"}) {
    const absl::Status status = rules.CheckHost(host);
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << host;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--allowed-hosts"));
  }
  EXPECT_TRUE(BrowserRules({.loopback = false}).CheckHost("any.example").ok());
}

TEST(BrowserRulesTest, AnOriginHasASchemeAndAHostAndNothingElse) {
  for (const char* origin : {"*", "null", "http://localhost:3000", "vscode-webview://abc"}) {
    EXPECT_TRUE(CheckOrigin(origin).ok()) << origin;
  }
  for (const char* origin : {"", "localhost:3000", "https://", "http://x/", "http://x/y", "://x"}) {
    EXPECT_FALSE(CheckOrigin(origin).ok()) << origin;
  }
}

}  // namespace
}  // namespace epic::coordinator
