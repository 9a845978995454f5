// What web pages see of the HTTP interface.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/frontend/http_api.h"
#include "coordinator/frontend/testing/fake_inference.h"

namespace epic::coordinator {
namespace {

using ::testing::HasSubstr;

std::string Header(const HttpAnswer& answer, const std::string& name) {
  for (const auto& [key, value] : answer.headers) {
    if (key == name) return value;
  }
  return "";
}

class BrowserTest : public ::testing::Test {
 protected:
  BrowserTest() { world_.context.api_keys = {"secret"}; }
  HttpReply Ask(HttpRequest request) { return HttpApi(world_.context).Handle(request); }

  FakeWorld world_;
};

TEST_F(BrowserTest, APreflightIsAnsweredWithoutAKey) {
  const HttpAnswer answer = Ask({.method = "OPTIONS",
                                 .target = "/v1/chat/completions",
                                 .origin = "http://localhost:3000",
                                 .preflight_headers = "authorization,x-stainless-os",
                                 .preflight_private = true})
                                .answer;
  EXPECT_EQ(answer.status, 204);
  EXPECT_EQ(Header(answer, "Access-Control-Allow-Origin"), "http://localhost:3000");
  EXPECT_THAT(Header(answer, "Access-Control-Allow-Methods"), HasSubstr("POST"));
  EXPECT_EQ(Header(answer, "Access-Control-Allow-Headers"), "authorization,x-stainless-os");
  EXPECT_EQ(Header(answer, "Access-Control-Allow-Private-Network"), "true");
  const HttpAnswer other =
      Ask({.method = "OPTIONS", .target = "/", .origin = "https://evil.example"}).answer;
  EXPECT_EQ(other.status, 204);
  for (const auto& [name, value] : other.headers) {
    EXPECT_EQ(name.find("Access-Control"), name.npos) << name;
  }
}

TEST_F(BrowserTest, EveryAnswerNamesTheOriginThatMayReadIt) {
  const std::string stream = R"({"messages":[{"role":"user","content":"x"}],"stream":true})";
  for (const HttpRequest& request : std::vector<HttpRequest>{
           {.method = "GET", .target = "/v1/models"},  // without a key
           {.method = "GET", .target = "/v1/models", .authorization = "Bearer secret"},
           {.method = "GET", .target = "/nothing"},
           {.method = "POST",
            .target = "/v1/chat/completions",
            .authorization = "Bearer secret",
            .body = stream},
           {.method = "GET", .target = "/health", .host = "evil.example"}}) {
    HttpRequest asked = request;
    asked.origin = "http://localhost:3000";
    EXPECT_EQ(Header(Ask(asked).answer, "Access-Control-Allow-Origin"), asked.origin);
    EXPECT_EQ(Header(Ask(asked).answer, "Vary"), "Origin");
    asked.origin = "https://evil.example:1";
    EXPECT_EQ(Header(Ask(asked).answer, "Access-Control-Allow-Origin"), "");
    EXPECT_EQ(Header(Ask(request).answer, "Vary"), "");
  }
  const HttpAnswer refused =
      HttpApi(world_.context).Refuse({.origin = "http://localhost"}, 413, "too large");
  EXPECT_EQ(refused.status, 413);
  EXPECT_EQ(Header(refused, "Access-Control-Allow-Origin"), "http://localhost");
}

TEST_F(BrowserTest, ANameThatSomebodyMayOwnIsRefusedOnLoopback) {
  HttpRequest request{.method = "GET",
                      .target = "/v1/models",
                      .authorization = "Bearer secret",
                      .host = "evil.example:8000"};
  const HttpAnswer answer = Ask(request).answer;
  EXPECT_EQ(answer.status, 403);
  EXPECT_EQ(Json::parse(answer.body)["error"]["type"], "permission_error");
  world_.context.browser = BrowserRules({.loopback = false});
  EXPECT_EQ(Ask(request).answer.status, 200);
}

}  // namespace
}  // namespace epic::coordinator
