#include "coordinator/frontend/grpc_inference.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <thread>

#include "coordinator/frontend/testing/fake_inference.h"
#include "proto/epic/v1/inference.grpc.pb.h"

namespace epic::coordinator {
namespace {

using ::testing::HasSubstr;

class GrpcInferenceTest : public ::testing::Test {
 protected:
  GrpcInferenceTest() : service_(NewGrpcInference(world_.context, RealThreads())) {
    grpc::ServerBuilder builder;
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    stub_ = v1::Inference::NewStub(server_->InProcessChannel({}));
  }

  static v1::GenerateRequest Question() {
    v1::GenerateRequest request;
    v1::ChatMessage* message = request.mutable_messages()->add_messages();
    message->set_role("user");
    message->set_content("What is 3 + 4?");
    return request;
  }

  grpc::Status Generate(const v1::GenerateRequest& request,
                        std::vector<v1::GenerateResponse>* responses) {
    grpc::ClientContext call;
    auto reader = stub_->Generate(&call, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) responses->push_back(response);
    return reader->Finish();
  }

  template <typename Condition>
  void WaitUntil(Condition condition) {
    while (!condition()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  FakeWorld world_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

TEST_F(GrpcInferenceTest, GeneratesReasoningTextAndUsage) {
  const std::vector<int32_t> tokens = world_.Encode("Hm.\n</think>\n\nIt is 7.");
  world_.inference.AnswerWith(tokens);
  std::vector<v1::GenerateResponse> responses;
  v1::GenerateRequest request = Question();
  request.set_logprobs(1);
  EXPECT_TRUE(Generate(request, &responses).ok());
  std::string reasoning, text;
  std::vector<int32_t> ids;
  for (const v1::GenerateResponse& response : responses) {
    reasoning += response.reasoning();
    text += response.text();
    ids.insert(ids.end(), response.token_ids().begin(), response.token_ids().end());
    EXPECT_EQ(response.logprobs_size(), response.token_ids_size());
  }
  EXPECT_EQ(reasoning, "Hm.");
  EXPECT_EQ(text, "It is 7.");
  EXPECT_EQ(ids, tokens);
  EXPECT_EQ(responses.back().finish_reason(), "stop");
  EXPECT_EQ(responses.back().usage().completion_tokens(), tokens.size());
  EXPECT_GT(responses.back().usage().reasoning_tokens(), 0);
  EXPECT_EQ(responses.back().usage().cached_tokens(), FakeInference::kCachedTokens);
  EXPECT_EQ(responses.back().system_fingerprint(), "epic-test");
  EXPECT_TRUE(responses.back().has_weights_id());
  EXPECT_EQ(responses.back().weights_id(), 0);
}

TEST_F(GrpcInferenceTest, StreamsTokensAsTheyCome) {
  grpc::ClientContext call;
  auto reader = stub_->Generate(&call, Question());
  WaitUntil([&] { return world_.inference.request_count() == 1; });
  for (const char* word : {"one", "two", "three"}) {
    world_.inference.Append(0, 0, world_.Encode(word));
    std::string seen;
    v1::GenerateResponse response;
    while (seen != word && reader->Read(&response)) seen += response.reasoning();
    EXPECT_EQ(seen, word);
  }
  world_.inference.Finish(0, 0, v1::FINISH_REASON_LENGTH);
  v1::GenerateResponse last;
  EXPECT_TRUE(reader->Read(&last));
  EXPECT_EQ(last.finish_reason(), "length");
  EXPECT_FALSE(reader->Read(&last));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(GrpcInferenceTest, ACancelledRequestEndsItsStream) {
  v1::GenerateRequest request = Question();
  request.set_request_id("mine");
  grpc::ClientContext call;
  auto reader = stub_->Generate(&call, request);
  WaitUntil([&] { return world_.inference.request_count() == 1; });
  v1::CancelRequest cancel;
  v1::CancelResponse nothing;
  cancel.set_request_id("mine");
  grpc::ClientContext first, second;
  EXPECT_TRUE(stub_->Cancel(&first, cancel, &nothing).ok());
  v1::GenerateResponse response;
  EXPECT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.finish_reason(), "cancelled");
  EXPECT_TRUE(reader->Finish().ok());
  WaitUntil([&] { return world_.inference.live_stream_count() == 0; });
  EXPECT_EQ(stub_->Cancel(&second, cancel, &nothing).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(GrpcInferenceTest, AClientThatLeavesDropsItsRequest) {
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext call;
    auto reader = stub_->Generate(&call, Question());
    WaitUntil([&] { return world_.inference.request_count() == i + 1; });
    world_.inference.Append(i, 0, world_.Encode("one two three"));
    call.TryCancel();
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  WaitUntil([&] { return world_.inference.live_stream_count() == 0; });
}

TEST_F(GrpcInferenceTest, TokensFromAnotherThreadMeetReadersAndLeavers) {
  constexpr int kCalls = 24;
  const std::vector<int32_t> tokens = world_.Encode("a b c d e f");
  std::vector<std::thread> clients;
  std::atomic<int> whole = 0;
  for (int i = 0; i < kCalls; ++i) {
    clients.emplace_back([&, leaves = i % 2 == 0] {
      grpc::ClientContext call;
      auto reader = stub_->Generate(&call, Question());
      v1::GenerateResponse response;
      size_t count = 0;
      while (reader->Read(&response)) {
        count += response.token_ids_size();
        if (leaves) call.TryCancel();
      }
      whole += reader->Finish().ok() && count == 40 * tokens.size();
    });
  }
  WaitUntil([&] { return world_.inference.request_count() == kCalls; });
  for (int round = 0; round < 40; ++round) {
    for (int i = 0; i < kCalls; ++i) world_.inference.Append(i, 0, tokens);
  }
  for (int i = 0; i < kCalls; ++i) world_.inference.Finish(i, 0, v1::FINISH_REASON_STOP);
  for (std::thread& client : clients) client.join();
  EXPECT_GE(whole, kCalls / 2);
  WaitUntil([&] { return world_.inference.live_stream_count() == 0; });
}

struct BadCall {
  std::function<void(v1::GenerateRequest*)> spoil;
  grpc::StatusCode code;
  const char* says;
};

TEST_F(GrpcInferenceTest, BadRequestsSayWhatIsWrong) {
  const std::vector<BadCall> calls = {
      {[](auto* r) { r->set_model("gpt"); }, grpc::StatusCode::NOT_FOUND, "gpt"},
      {[](auto* r) { r->clear_input(); }, grpc::StatusCode::INVALID_ARGUMENT, "token_ids"},
      {[](auto* r) { r->set_max_tokens(-3); }, grpc::StatusCode::INVALID_ARGUMENT, "max_tokens"},
      {[](auto* r) { r->set_n(100000); }, grpc::StatusCode::INVALID_ARGUMENT, "[1, 128]"},
      {[](auto* r) { r->mutable_token_ids()->add_ids(1024); }, grpc::StatusCode::INVALID_ARGUMENT,
       "1024"},
      {[](auto* r) { r->mutable_token_ids(); }, grpc::StatusCode::INVALID_ARGUMENT, "empty"},
      {[](auto* r) { r->mutable_sampling()->set_temperature(std::nanf("")); },
       grpc::StatusCode::INVALID_ARGUMENT, "temperature"},
      {[](auto* r) { r->mutable_sampling()->set_top_p(0); }, grpc::StatusCode::INVALID_ARGUMENT,
       "top_p"},
      {[](auto* r) { r->set_timeout_seconds(-1); }, grpc::StatusCode::INVALID_ARGUMENT,
       "timeout_seconds"},
      {[](auto* r) { r->set_request_id(std::string(500, 'x')); },
       grpc::StatusCode::INVALID_ARGUMENT, "request_id"},
      {[](auto* r) { r->mutable_messages()->set_chat_template_kwargs_json("{"); },
       grpc::StatusCode::INVALID_ARGUMENT, "chat_template_kwargs_json"},
      {[](auto* r) { r->mutable_messages()->mutable_messages(0)->set_role("king"); },
       grpc::StatusCode::INVALID_ARGUMENT, "king"}};
  for (const BadCall& bad : calls) {
    v1::GenerateRequest request = Question();
    bad.spoil(&request);
    std::vector<v1::GenerateResponse> responses;
    const grpc::Status status = Generate(request, &responses);
    EXPECT_EQ(status.error_code(), bad.code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(bad.says));
  }
  EXPECT_EQ(world_.inference.request_count(), 0);
  world_.inference.RefuseWith(absl::ResourceExhaustedError("the queue is full"));
  std::vector<v1::GenerateResponse> responses;
  EXPECT_EQ(Generate(Question(), &responses).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(GrpcInferenceTest, AFailedRequestEndsWithItsStatus) {
  grpc::ClientContext call;
  auto reader = stub_->Generate(&call, Question());
  WaitUntil([&] { return world_.inference.request_count() == 1; });
  world_.inference.Finish(0, 0, v1::FINISH_REASON_ERROR, absl::DeadlineExceededError("too late"));
  v1::GenerateResponse response;
  EXPECT_FALSE(reader->Read(&response));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(status.error_message(), "too late");
}

TEST_F(GrpcInferenceTest, TokenizesDetokenizesAndListsModels) {
  v1::TokenizeRequest text;
  text.set_text("What is");
  v1::TokenizeResponse ids;
  grpc::ClientContext a, b, c;
  EXPECT_TRUE(stub_->Tokenize(&a, text, &ids).ok());
  v1::DetokenizeRequest back;
  *back.mutable_ids() = ids.ids();
  v1::DetokenizeResponse again;
  EXPECT_TRUE(stub_->Detokenize(&b, back, &again).ok());
  EXPECT_EQ(again.text(), "What is");
  v1::ListModelsResponse models;
  EXPECT_TRUE(stub_->ListModels(&c, {}, &models).ok());
  EXPECT_EQ(models.models(0).id(), "tiny-r1");
  EXPECT_EQ(models.models(0).max_model_len(), 4096);
}

TEST_F(GrpcInferenceTest, KeysGuardTheService) {
  world_.context.api_keys = {"secret"};
  v1::ListModelsResponse models;
  grpc::ClientContext without, with;
  EXPECT_EQ(stub_->ListModels(&without, {}, &models).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  with.AddMetadata("authorization", "Bearer secret");
  EXPECT_TRUE(stub_->ListModels(&with, {}, &models).ok());
  std::vector<v1::GenerateResponse> responses;
  EXPECT_EQ(Generate(Question(), &responses).error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

}  // namespace
}  // namespace epic::coordinator
