#include "coordinator/frontend/http_api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_split.h"
#include "coordinator/frontend/testing/fake_inference.h"

namespace epic::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const char kChat[] = R"({"model":"tiny-r1","messages":[{"role":"user","content":"Hi"}]})";

class HttpApiTest : public ::testing::Test {
 protected:
  HttpReply Send(const std::string& method, const std::string& target, const std::string& body) {
    return HttpApi(world_.context).Handle({.method = method, .target = target, .body = body});
  }

  // A POST, and its whole answer.
  HttpAnswer Post(const std::string& target, const std::string& body) {
    HttpReply reply = Send("POST", target, body);
    if (reply.source == nullptr) return reply.answer;
    AnswerSource::Part part = reply.source->Pull();
    if (part.answer) return *part.answer;
    return {.body = part.bytes};
  }

  // `fields` beside model and messages.
  HttpAnswer PostChat(const Json& fields) {
    Json body = Json::parse(kChat);
    body.update(fields);
    return Post("/v1/chat/completions", body.dump());
  }

  HttpAnswer PostCompletion(const Json& fields) {
    Json body = {{"model", "tiny-r1"}, {"prompt", "What is 3 + 4?"}};
    body.update(fields);
    return Post("/v1/completions", body.dump());
  }

  Request last_request() { return world_.inference.request(world_.inference.request_count() - 1); }

  FakeWorld world_;
};

std::vector<Json> Events(const std::string& bytes) {
  std::vector<Json> events;
  for (const auto line : absl::StrSplit(bytes, '\n')) {
    if (line.substr(0, 6) == "data: " && line != "data: [DONE]") {
      events.push_back(Json::parse(line.substr(6)));
    }
  }
  return events;
}

std::string Header(const HttpAnswer& answer, const std::string& name) {
  for (const auto& [key, value] : answer.headers) {
    if (key == name) return value;
  }
  return "";
}

struct BadRequest {
  const char* fields;
  const char* param;
  const char* says;
};

class BadChatTest : public HttpApiTest, public ::testing::WithParamInterface<BadRequest> {};

TEST_P(BadChatTest, IsRefusedByFieldValueAndLimit) {
  const HttpAnswer answer = PostChat(Json::parse(GetParam().fields));
  EXPECT_EQ(answer.status, 400);
  const Json error = Json::parse(answer.body)["error"];
  EXPECT_EQ(error["param"], GetParam().param);
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(GetParam().says));
  EXPECT_EQ(error["type"], "invalid_request_error");
  EXPECT_EQ(world_.inference.request_count(), 0);
}

INSTANTIATE_TEST_SUITE_P(
    , BadChatTest,
    ::testing::Values(
        BadRequest{R"({"messages": null})", "messages", "missing"},
        BadRequest{R"({"messages": "hello"})", "messages", "an array, not \"hello\""},
        BadRequest{R"({"messages": []})", "messages", "empty"},
        BadRequest{R"({"messages": [3]})", "messages[0]", "an object, not 3"},
        BadRequest{R"({"messages": [{"content": "x"}]})", "messages[0].role", "missing"},
        BadRequest{R"({"messages": [{"role": "king", "content": "x"}]})", "messages[0].role",
                   "king"},
        BadRequest{R"({"messages": [{"role": "user"}]})", "messages[0].content", "missing"},
        BadRequest{R"({"messages": [{"role": "user", "content": 7}]})", "messages[0].content", "7"},
        BadRequest{R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})",
                   "messages[0].content[0].type", "image_url"},
        BadRequest{R"({"temperature": -1})", "temperature", "[0, 2]"},
        BadRequest{R"({"temperature": 2.01})", "temperature", "2.01"},
        BadRequest{R"({"temperature": "hot"})", "temperature", "a number, not \"hot\""},
        BadRequest{R"({"top_p": 0})", "top_p", "(0, 1]"},
        BadRequest{R"({"top_p": 1.5})", "top_p", "1.5"},
        BadRequest{R"({"min_p": 2})", "min_p", "[0, 1]"},
        BadRequest{R"({"top_k": -2})", "top_k", "-2"},
        BadRequest{R"({"top_k": 1.5})", "top_k", "an integer"},
        BadRequest{R"({"n": 0})", "n", "[1, 128]"}, BadRequest{R"({"n": 100000})", "n", "100000"},
        BadRequest{R"({"n": 18446744073709551615})", "n", "64 bits"},
        BadRequest{R"({"max_tokens": 0})", "max_tokens", "0"},
        BadRequest{R"({"max_completion_tokens": -5})", "max_completion_tokens", "-5"},
        BadRequest{R"({"max_tokens": 4096})", "max_tokens", "context of 4096"},
        BadRequest{R"({"max_tokens": 8, "min_tokens": 9})", "min_tokens", "[0, 8]"},
        BadRequest{R"({"presence_penalty": 3})", "presence_penalty", "[-2, 2]"},
        BadRequest{R"({"frequency_penalty": -3})", "frequency_penalty", "[-2, 2]"},
        BadRequest{R"({"repetition_penalty": 0})", "repetition_penalty", "(0, 10]"},
        BadRequest{R"({"stop": 5})", "stop", "a string or an array of strings"},
        BadRequest{R"({"stop": ["a", 5]})", "stop", "5"},
        BadRequest{R"({"stop": ""})", "stop", "[1, 1024]"},
        BadRequest{R"({"stop": ["","","","","","","","","","","","","","","","",""]})", "stop",
                   "17"},
        BadRequest{R"({"stop_token_ids": [1024]})", "stop_token_ids", "1024"},
        BadRequest{R"({"stop_token_ids": ["x"]})", "stop_token_ids", "token ids"},
        BadRequest{R"({"seed": "x"})", "seed", "an integer"},
        BadRequest{R"({"logprobs": 3})", "logprobs", "true or false"},
        BadRequest{R"({"logprobs": true, "top_logprobs": 21})", "top_logprobs", "[0, 20]"},
        BadRequest{R"({"top_logprobs": 2})", "top_logprobs", "logprobs is not true"},
        BadRequest{R"({"stream": "yes"})", "stream", "true or false"},
        BadRequest{R"({"stream_options": {}})", "stream_options", "stream is not true"},
        BadRequest{R"({"stream": true, "stream_options": {"include_usage": 1}})", "stream_options",
                   "stream_options.include_usage"},
        BadRequest{R"({"tools": [{"type": "function"}]})", "tools", "tool calls"},
        BadRequest{R"({"tool_choice": "required"})", "tool_choice", "required"},
        BadRequest{R"({"response_format": {"type": "json_schema"}})", "response_format",
                   "json_schema"},
        BadRequest{R"({"logit_bias": {"5": 1}})", "logit_bias", "not support"},
        BadRequest{R"({"guided_regex": "a"})", "guided_regex", "not support"},
        BadRequest{R"({"continue_final_message": true})", "continue_final_message", "not support"},
        BadRequest{R"({"echo": true})", "echo", "not supported"},
        BadRequest{R"({"modalities": ["audio"]})", "modalities", "text"},
        BadRequest{R"({"separate_reasoning": false})", "separate_reasoning", "only true"},
        BadRequest{R"({"chat_template_kwargs": []})", "chat_template_kwargs", "an object"}));

class BadCompletionTest : public HttpApiTest, public ::testing::WithParamInterface<BadRequest> {};

TEST_P(BadCompletionTest, IsRefusedByFieldValueAndLimit) {
  const HttpAnswer answer = PostCompletion(Json::parse(GetParam().fields));
  EXPECT_EQ(answer.status, 400);
  const Json error = Json::parse(answer.body)["error"];
  EXPECT_EQ(error["param"], GetParam().param);
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(GetParam().says));
}

INSTANTIATE_TEST_SUITE_P(
    , BadCompletionTest,
    ::testing::Values(BadRequest{R"({"prompt": null})", "prompt", "missing"},
                      BadRequest{R"({"prompt": 5})", "prompt", "not 5"},
                      BadRequest{R"({"prompt": []})", "prompt", "empty"},
                      BadRequest{R"({"prompt": [5, "x"]})", "prompt", "an array of 2"},
                      BadRequest{R"({"prompt": [5, 1024]})", "prompt", "1024"},
                      BadRequest{R"({"prompt": [5, -1]})", "prompt", "-1"},
                      BadRequest{R"({"prompt": [[5], {}]})", "prompt", "an object"},
                      BadRequest{R"({"prompt": ["a", "b"], "n": 65})", "n", "130"},
                      BadRequest{R"({"logprobs": true})", "logprobs", "an integer"},
                      BadRequest{R"({"logprobs": 21})", "logprobs", "[0, 20]"},
                      BadRequest{R"({"suffix": "x"})", "suffix", "not support"},
                      BadRequest{R"({"best_of": 2})", "best_of", "not support"}));

TEST_F(HttpApiTest, BodiesThatAreNotJsonAreRefused) {
  const std::string deep(100000, '[');
  std::string keys = "{\"a\":1";
  for (int i = 0; i < 2000; ++i) keys += ",\"" + std::to_string(i) + "\":1";
  for (const auto& [body, says] : std::vector<std::pair<std::string, std::string>>{
           {"", "JSON"},
           {"{\"model\": \"tiny-r1\", \"messages\": [", "JSON"},
           {"[]", "object"},
           {"{\"a\": \"\xff\xfe\"}", "UTF-8"},
           {"{\"a\": \"\xed\xa0\x80\"}", "UTF-8"},
           {deep, "64 levels"},
           {keys + "}", "1024 keys"}}) {
    const HttpAnswer answer = Post("/v1/chat/completions", body);
    EXPECT_EQ(answer.status, 400) << body.substr(0, 40);
    EXPECT_THAT(Json::parse(answer.body)["error"]["message"].get<std::string>(), HasSubstr(says));
  }
}

TEST_F(HttpApiTest, FieldsReachTheRequest) {
  world_.inference.AnswerWith({1008});
  EXPECT_EQ(PostChat(Json::parse(R"({"temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1,
      "seed": -2, "repetition_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": -1,
      "max_completion_tokens": 33, "min_tokens": 2, "stop": "END", "stop_token_ids": [3], "n": 2,
      "logprobs": true, "top_logprobs": 4, "priority": -6, "user": "me", "unheard_of": 5})"))
                .status,
            200);
  const Request request = last_request();
  EXPECT_EQ(request.sampling.temperature(), 0);
  EXPECT_FLOAT_EQ(request.sampling.top_p(), 0.5);
  EXPECT_EQ(request.sampling.top_k(), 7);
  EXPECT_FLOAT_EQ(request.sampling.min_p(), 0.1);
  EXPECT_EQ(request.sampling.seed(), ~uint64_t{1});
  EXPECT_EQ(request.sampling.repetition_penalty(), 1.5);
  EXPECT_EQ(request.sampling.presence_penalty(), 1);
  EXPECT_EQ(request.sampling.frequency_penalty(), -1);
  EXPECT_EQ(request.max_tokens, 33);
  EXPECT_EQ(request.min_tokens, 2);
  EXPECT_THAT(request.answer.stop, ElementsAre("END"));
  EXPECT_THAT(request.stop_token_ids, ElementsAre(3, 1008));
  EXPECT_THAT((std::vector{request.choices, request.logprobs, request.priority}),
              ElementsAre(2, 4, -6));
}

TEST_F(HttpApiTest, DefaultsAreTheModelsAndWhatTheContextLeaves) {
  world_.inference.AnswerWith({1008});
  PostChat(Json::object());
  Request request = last_request();
  EXPECT_FLOAT_EQ(request.sampling.temperature(), 0.6);
  EXPECT_FLOAT_EQ(request.sampling.top_p(), 0.95);
  EXPECT_FALSE(request.sampling.has_seed());
  EXPECT_EQ(request.max_tokens + static_cast<int>(request.prompt.size()), 4096);
  EXPECT_THAT(request.stop_token_ids, ElementsAre(1008));
  EXPECT_EQ(request.logprobs, -1);
  PostChat({{"ignore_eos", true}});
  EXPECT_THAT(last_request().stop_token_ids, ElementsAre());
  PostCompletion(Json::object());
  EXPECT_EQ(last_request().max_tokens, 16);
}

TEST_F(HttpApiTest, ContentPartsAreOneText) {
  world_.inference.AnswerWith({1008});
  const auto prompt_of = [&](const char* content) {
    PostChat({{"messages", {{{"role", "user"}, {"content", Json::parse(content)}}}}});
    return last_request().prompt;
  };
  EXPECT_EQ(prompt_of(R"([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])"),
            prompt_of(R"("a\nb")"));
}

TEST_F(HttpApiTest, AnAnswerHasReasoningContentAndUsage) {
  world_.inference.AnswerWith(
      world_.Encode("Let me see.\n</think>\n\nIt is 7.<｜end▁of▁sentence｜>"));
  const Json answer = Json::parse(PostChat({{"return_token_ids", true}}).body);
  const Json& choice = answer["choices"][0];
  EXPECT_EQ(choice["message"]["content"], "It is 7.");
  EXPECT_EQ(choice["message"]["reasoning_content"], "Let me see.");
  EXPECT_EQ(choice["message"]["reasoning"], "Let me see.");
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_EQ(answer["system_fingerprint"], "epic-test");
  const Json& usage = answer["usage"];
  EXPECT_EQ(usage["completion_tokens"], choice["token_ids"].size());
  EXPECT_EQ(usage["prompt_tokens"], answer["prompt_token_ids"].size());
  EXPECT_EQ(usage["prompt_tokens_details"]["cached_tokens"], 7);
  const int reasoning = usage["completion_tokens_details"]["reasoning_tokens"];
  EXPECT_GT(reasoning, 0);
  EXPECT_LT(reasoning, usage["completion_tokens"].get<int>());
}

// The request's end comes with its last token, however the tokens come.
TEST_F(HttpApiTest, AStreamSaysWhatTheWholeAnswerSaysForEverySplit) {
  const std::vector<int32_t> tokens = world_.Encode(
      "Thinking… über 🙂\n\n</think>\n\nThe answer is 🙂 7, STOP and "
      "more.<｜end▁of▁sentence｜>");
  for (const char* fields : {R"({})", R"({"stop": ["STOP"]})", R"({"stop": ["über", "answer"]})",
                             R"({"logprobs": true})", R"({"return_token_ids": true})"}) {
    const Json options = Json::parse(fields);
    world_.inference.AnswerWith(tokens);
    const Json whole = Json::parse(PostChat(options).body);
    world_.inference.AnswerWith({}, v1::FINISH_REASON_NONE);
    Json streaming = options;
    streaming["stream"] = true;
    streaming["stream_options"] = {{"include_usage", true}};
    for (size_t split = 0; split <= tokens.size(); ++split) {
      Json body = Json::parse(kChat);
      body.update(streaming);
      HttpReply reply = Send("POST", "/v1/chat/completions", body.dump());
      ASSERT_NE(reply.source, nullptr);
      const int number = world_.inference.request_count() - 1;
      std::string bytes = reply.source->Pull().bytes;
      world_.inference.Append(number, 0, {tokens.begin(), tokens.begin() + split});
      bytes += reply.source->Pull().bytes;
      world_.inference.Append(number, 0, {tokens.begin() + split, tokens.end()});
      world_.inference.Finish(number, 0, v1::FINISH_REASON_STOP);
      AnswerSource::Part part = reply.source->Pull();
      EXPECT_TRUE(part.done);
      bytes += part.bytes;
      std::string content, reasoning;
      std::vector<int32_t> ids;
      const std::vector<Json> events = Events(bytes);
      for (const Json& event : events) {
        for (const Json& choice : event["choices"]) {
          const std::string said = choice["delta"].value("content", "");
          const std::string thought = choice["delta"].value("reasoning_content", "");
          EXPECT_EQ(thought, choice["delta"].value("reasoning", ""));
          EXPECT_TRUE(said.empty() || thought.empty());
          content += said;
          reasoning += thought;
          if (choice.contains("token_ids")) ids.push_back(choice["token_ids"][0]);
        }
      }
      const Json& message = whole["choices"][0]["message"];
      EXPECT_EQ(content, message["content"]);
      EXPECT_EQ(reasoning, message.value("reasoning_content", Json("")).is_null()
                               ? Json("")
                               : message["reasoning_content"]);
      EXPECT_EQ(events.front()["choices"][0]["delta"]["role"], "assistant");
      EXPECT_EQ(events[events.size() - 2]["choices"][0]["finish_reason"], "stop");
      EXPECT_EQ(events.back()["usage"], whole["usage"]);
      EXPECT_TRUE(events.back()["choices"].empty());
      if (options.contains("return_token_ids")) {
        EXPECT_EQ(ids, tokens);
      }
      EXPECT_THAT(bytes, HasSubstr("data: [DONE]\n\n"));
    }
  }
}

TEST_F(HttpApiTest, EventsDependOnTokensAloneNotOnWhenTheyCome) {
  const std::vector<int32_t> tokens = world_.Encode("Hm.\n</think>\n\nSeven.");
  const auto stream = [&](size_t group) {
    Json body = Json::parse(kChat);
    body["stream"] = true;
    HttpReply reply = Send("POST", "/v1/chat/completions", body.dump());
    const int number = world_.inference.request_count() - 1;
    std::vector<Json> choices;
    const auto pull = [&] {
      for (const Json& event : Events(reply.source->Pull().bytes)) {
        choices.push_back(event["choices"]);
      }
    };
    for (size_t i = 0; i < tokens.size(); i += group) {
      const size_t end = std::min(i + group, tokens.size());
      world_.inference.Append(number, 0, {tokens.begin() + i, tokens.begin() + end});
      if (end == tokens.size()) world_.inference.Finish(number, 0, v1::FINISH_REASON_LENGTH);
      pull();
    }
    return choices;
  };
  EXPECT_EQ(stream(1), stream(3));
  EXPECT_EQ(stream(1), stream(100));
}

TEST_F(HttpApiTest, CompletionsTakeTextsAndTokens) {
  world_.inference.AnswerWith(world_.Encode("seven"), v1::FINISH_REASON_LENGTH);
  const std::vector<int32_t> ids = {1007, 5, 6};
  Json answer = Json::parse(PostCompletion({{"prompt", ids}, {"return_token_ids", true}}).body);
  EXPECT_EQ(last_request().prompt, ids);
  EXPECT_EQ(answer["choices"][0]["text"], "seven");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(answer["choices"][0]["prompt_token_ids"], ids);
  answer = Json::parse(PostCompletion({{"prompt", {"a", "b", "c"}}, {"n", 2}}).body);
  EXPECT_EQ(answer["choices"].size(), 6);
  EXPECT_EQ(answer["choices"][5]["index"], 5);
  PostCompletion({{"prompt", {{5, 6}, {7}}}});
  EXPECT_THAT(last_request().prompt, ElementsAre(7));
}

TEST_F(HttpApiTest, EchoScoresThePrompt) {
  world_.inference.AnswerWith(world_.Encode("7"), v1::FINISH_REASON_LENGTH);
  for (const bool stream : {false, true}) {
    const HttpAnswer answer =
        PostCompletion({{"echo", true}, {"logprobs", 1}, {"max_tokens", 1}, {"stream", stream}});
    const size_t prompt_size = last_request().prompt.size();
    Json logprobs = {{"tokens", Json::array()},
                     {"token_logprobs", Json::array()},
                     {"text_offset", Json::array()}};
    std::string text;
    for (const Json& part :
         stream ? Events(answer.body) : std::vector<Json>{Json::parse(answer.body)}) {
      const Json& choice = part["choices"][0];
      text += choice["text"];
      for (auto& [name, list] : logprobs.items()) {
        for (const Json& element : choice["logprobs"][name]) list.push_back(element);
      }
    }
    EXPECT_EQ(text, "What is 3 + 4?7");
    EXPECT_EQ(logprobs["tokens"].size(), prompt_size + 1);
    EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
    EXPECT_EQ(logprobs["token_logprobs"][1], -0.5);
    EXPECT_EQ(logprobs["token_logprobs"].back(), -0.25);
    EXPECT_TRUE(std::is_sorted(logprobs["text_offset"].begin(), logprobs["text_offset"].end()));
  }
}

TEST_F(HttpApiTest, ChatLogprobsHaveBytesOfHalfCharacters) {
  world_.inference.AnswerWith(world_.Encode("</think>🙂"), v1::FINISH_REASON_LENGTH);
  const Json answer =
      Json::parse(PostChat({{"logprobs", true}, {"top_logprobs", 1}}).body)["choices"][0];
  std::string bytes;
  for (const Json& token : answer["logprobs"]["content"]) {
    EXPECT_EQ(token["top_logprobs"].size(), 1);
    for (const Json& byte : token["bytes"]) bytes += static_cast<char>(byte.get<int>());
  }
  EXPECT_EQ(bytes, "</think>🙂");
  EXPECT_EQ(answer["message"]["content"], "🙂");
}

TEST_F(HttpApiTest, AnErrorWithinAStreamIsAnEvent) {
  Json body = Json::parse(kChat);
  body["stream"] = true;
  HttpReply reply = Send("POST", "/v1/chat/completions", body.dump());
  world_.inference.Append(0, 0, world_.Encode("ab"));
  world_.inference.Finish(0, 0, v1::FINISH_REASON_ERROR, absl::DeadlineExceededError("too late"));
  const AnswerSource::Part part = reply.source->Pull();
  EXPECT_TRUE(part.done);
  EXPECT_EQ(Events(part.bytes).back()["error"]["message"], "too late");
  EXPECT_THAT(part.bytes, HasSubstr("[DONE]"));
}

TEST_F(HttpApiTest, AnErrorBeforeTheAnswerIsItsStatus) {
  HttpReply reply = Send("POST", "/v1/chat/completions", kChat);
  EXPECT_FALSE(reply.source->Pull().answer.has_value());
  world_.inference.Finish(0, 0, v1::FINISH_REASON_ERROR, absl::DeadlineExceededError("too late"));
  EXPECT_EQ(reply.source->Pull().answer->status, 504);
}

TEST_F(HttpApiTest, RefusalsTellWhenToComeBack) {
  world_.inference.RefuseWith(absl::ResourceExhaustedError("the queue is full"));
  HttpAnswer answer = PostChat(Json::object());
  EXPECT_EQ(answer.status, 429);
  EXPECT_EQ(Header(answer, "Retry-After"), "1");
  EXPECT_EQ(Json::parse(answer.body)["error"]["type"], "rate_limit_error");
  world_.inference.RefuseWith(absl::UnavailableError("draining"));
  answer = PostChat(Json::object());
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(Header(answer, "Retry-After"), "5");
}

TEST_F(HttpApiTest, ReadinessTellsTheReason) {
  EXPECT_EQ(Send("GET", "/ready", "").answer.status, 200);
  world_.inference.SetReady(false, "rank 0 is loading");
  const HttpAnswer answer = Send("GET", "/ready", "").answer;
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(Json::parse(answer.body)["reason"], "rank 0 is loading");
  EXPECT_EQ(Send("GET", "/health", "").answer.status, 200);
}

TEST_F(HttpApiTest, UnknownPathsModelsAndMethods) {
  EXPECT_EQ(Send("GET", "/nothing", "").answer.status, 404);
  const HttpAnswer wrong = Send("GET", "/v1/chat/completions", "").answer;
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(Header(wrong, "Allow"), "POST");
  const HttpAnswer unknown = PostChat({{"model", "gpt"}});
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(Json::parse(unknown.body)["error"]["code"], "model_not_found");
  EXPECT_EQ(Send("GET", "/v1/models/gpt", "").answer.status, 404);
  EXPECT_EQ(Json::parse(Send("GET", "/v1/models/tiny", "").answer.body)["id"], "tiny");
  EXPECT_EQ(Json::parse(Send("GET", "/v1/models/t%69ny", "").answer.body)["id"], "tiny");
  EXPECT_EQ(Send("GET", "/v1/models/t%", "").answer.status, 404);
  EXPECT_EQ(Json::parse(Send("GET", "/v1/models?x=1", "").answer.body)["data"].size(), 2);
  EXPECT_EQ(Json::parse(Send("GET", "/version", "").answer.body)["version"], "test");
}

TEST_F(HttpApiTest, RequestIdsAreEchoedOrDrawn) {
  const HttpApi api(world_.context);
  HttpRequest request{.method = "GET", .target = "/health", .request_id = "mine"};
  EXPECT_EQ(Header(api.Handle(request).answer, "X-Request-Id"), "mine");
  request.request_id = "";
  EXPECT_EQ(Header(api.Handle(request).answer, "X-Request-Id").size(), 32);
  request.request_id = std::string(200, 'x');
  EXPECT_EQ(api.Handle(request).answer.status, 400);
}

TEST_F(HttpApiTest, KeysGuardWhatCosts) {
  world_.context.api_keys = {"secret", "other"};
  const HttpApi api(world_.context);
  HttpRequest request{.method = "GET", .target = "/v1/models"};
  for (const auto& [authorization, status] :
       std::vector<std::pair<std::string, int>>{{"", 401},
                                                {"Bearer wrong", 401},
                                                {"Bearer secre", 401},
                                                {"secret", 401},
                                                {"Bearer secret", 200},
                                                {"bearer other", 200}}) {
    request.authorization = authorization;
    EXPECT_EQ(api.Handle(request).answer.status, status) << authorization;
  }
  request.authorization = "";
  for (const char* open : {"/health", "/ready", "/metrics"}) {
    request.target = open;
    EXPECT_EQ(api.Handle(request).answer.status, 200);
  }
}

TEST_F(HttpApiTest, TokenizeAndDetokenize) {
  const Json ids = Json::parse(Post("/tokenize", R"({"prompt": "What is 3 + 4?"})").body);
  EXPECT_EQ(ids["count"], ids["tokens"].size());
  EXPECT_EQ(ids["tokens"][0], 1007);
  EXPECT_EQ(ids["max_model_len"], 4096);
  const Json plain =
      Json::parse(Post("/tokenize", R"({"prompt": "What is", "add_special_tokens": false,
                            "return_token_strs": true})")
                      .body);
  EXPECT_NE(plain["tokens"][0], 1007);
  EXPECT_EQ(plain["token_strs"].size(), plain["tokens"].size());
  EXPECT_EQ(
      Json::parse(Post("/detokenize", Json({{"tokens", plain["tokens"]}}).dump()).body)["prompt"],
      "What is");
  EXPECT_EQ(Post("/detokenize", R"({"tokens": [99999]})").status, 400);
  EXPECT_EQ(Post("/detokenize", "{}").status, 400);
  const Json chat = Json::parse(Post("/tokenize", kChat).body);
  EXPECT_EQ(chat["tokens"][0], 1007);
}

TEST_F(HttpApiTest, MetricsHaveOurNamesAndVllms) {
  world_.inference.AnswerWith(world_.Encode("a b c"));
  PostChat(Json::object());
  world_.metrics_page.AddCounter("epic_replay_mismatch_total", "Tokens replayed otherwise",
                                 [] { return 4; });
  const std::string page = Send("GET", "/metrics", "").answer.body;
  for (const char* line :
       {"epic_requests_running{model_name=\"tiny-r1\"} 0",
        "vllm:num_requests_running{model_name=\"tiny-r1\"} 0",
        "vllm:num_requests_waiting{model_name=\"tiny-r1\"} 0",
        "vllm:kv_cache_usage_perc{model_name=\"tiny-r1\"} 0.25",
        "# TYPE vllm:generation_tokens_total counter",
        "vllm:request_success_total{model_name=\"tiny-r1\",finished_reason=\"stop\"} 1",
        "vllm:time_to_first_token_seconds_count{model_name=\"tiny-r1\"} 1",
        "vllm:e2e_request_latency_seconds_count{model_name=\"tiny-r1\"} 1",
        "vllm:inter_token_latency_seconds_bucket", "epic_replay_mismatch_total 4",
        "epic_rank_ready{rank=\"0\"} 1"}) {
    EXPECT_NE(page.find(line), page.npos) << line;
  }
}

TEST_F(HttpApiTest, AnAnswerNobodyWaitsForCancelsItsRequests) {
  HttpReply reply = Send("POST", "/v1/completions", R"({"prompt": ["a", "b"]})");
  EXPECT_EQ(world_.inference.live_stream_count(), 2);
  reply.source.reset();
  EXPECT_EQ(world_.inference.live_stream_count(), 0);
}

}  // namespace
}  // namespace epic::coordinator
