#include "coordinator/frontend/openai_request.h"

#include <gtest/gtest.h>

#include "coordinator/frontend/testing/fake_inference.h"

namespace epic::coordinator {
namespace {

class OpenAiRequestTest : public ::testing::Test {
 protected:
  absl::StatusOr<OpenAiRequest> ReadCompletion(const Json& fields) {
    Json body = {{"prompt", "What is 3 + 4?"}};
    body.update(fields);
    return ReadCompletionRequest(world_.context, body);
  }

  FakeWorld world_;
};

TEST_F(OpenAiRequestTest, ASeedOfMinusOneIsDrawn) {
  EXPECT_FALSE(ReadCompletion({{"seed", -1}})->requests[0].sampling.has_seed());
  EXPECT_EQ(ReadCompletion({{"seed", 0}})->requests[0].sampling.seed(), 0);
  EXPECT_EQ(ReadCompletion({{"seed", -2}})->requests[0].sampling.seed(), ~uint64_t{1});
}

TEST_F(OpenAiRequestTest, LogprobsOfACompletionMayBeFalse) {
  EXPECT_EQ(ReadCompletion({{"logprobs", false}, {"echo", true}})->logprobs, -1);
  EXPECT_EQ(ReadCompletion({{"logprobs", 0}})->logprobs, 0);
  EXPECT_FALSE(ReadCompletion({{"logprobs", true}}).ok());
}

}  // namespace
}  // namespace epic::coordinator
