// The lines of event streams.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "coordinator/frontend/http_api.h"
#include "coordinator/frontend/testing/fake_inference.h"

namespace epic::coordinator {
namespace {

TEST(OpenAiStreamTest, StreamsHoldDataLinesAloneUnlessEventIdsAreAskedFor) {
  FakeWorld world;
  world.inference.AnswerWith(world.Encode("Hm.\n</think>\n\nSeven."));
  const int token_count = static_cast<int>(world.Encode("Hm.\n</think>\n\nSeven.").size());
  for (const bool ids : {false, true}) {
    const std::string body =
        absl::StrCat(R"({"messages":[{"role":"user","content":"Hi"}],"stream":true,)",
                     R"("stream_options":{"include_event_ids":)", ids ? "true" : "false", "}}");
    const HttpReply reply = HttpApi(world.context)
                                .Handle({.method = "POST",
                                         .target = "/v1/chat/completions",
                                         .body = body});
    ASSERT_NE(reply.source, nullptr) << reply.answer.body;
    const std::string bytes = reply.source->Pull().bytes;
    std::string last_id;
    for (const auto line : absl::StrSplit(bytes, '\n')) {
      if (line.substr(0, 4) == "id: ") last_id = std::string(line);
      EXPECT_TRUE(ids || line.empty() || line.substr(0, 6) == "data: ") << line;
    }
    EXPECT_EQ(last_id.substr(last_id.find_last_of(':') + 1), ids ? absl::StrCat(token_count) : "");
  }
}

}  // namespace
}  // namespace epic::coordinator
