#include "coordinator/frontend/generation.h"

#include <gtest/gtest.h>

#include "coordinator/frontend/testing/fake_inference.h"

namespace epic::coordinator {
namespace {

// A journal grows while its reader is slow: what is read must not be copied again and again.
TEST(GenerationTest, ASlowReaderCopiesEachTokenOnce) {
  FakeWorld world;
  world.inference.AnswerWith(std::vector<int32_t>(2000, 65));
  Request request{.id = "r", .prompt = world.Encode("hi"), .max_tokens = 2000};
  std::vector<Request> requests;
  requests.push_back(std::move(request));
  auto generation = *Generation::Start(world.context, std::move(requests));
  size_t outputs = 0;
  while (!generation->done()) outputs += generation->Pull(256)->size();
  EXPECT_EQ(outputs, 2000u);
  EXPECT_EQ(world.inference.tokens_read(), 2000);
}

}  // namespace
}  // namespace epic::coordinator
