#include "coordinator/frontend/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "coordinator/frontend/json_fields.h"
#include "coordinator/frontend/testing/fake_inference.h"

namespace epic::coordinator {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// A blocking client that knows no HTTP.
class Client {
 public:
  explicit Client(int port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    const timeval limit{.tv_sec = 60};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  }
  Client(Client&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~Client() {
    if (fd_ >= 0) ::close(fd_);
  }

  void Send(const std::string& bytes) { ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
  // All that comes up to and with `end`, or up to the server's end.
  std::string ReadTo(const std::string& end) {
    while (received_.find(end) == received_.npos) {
      char buffer[4096];
      const ssize_t size = ::recv(fd_, buffer, sizeof(buffer), 0);
      if (size <= 0) return std::exchange(received_, "");
      received_.append(buffer, size);
    }
    const size_t size = received_.find(end) + end.size();
    std::string taken = received_.substr(0, size);
    received_.erase(0, size);
    return taken;
  }
  std::string ReadAll() { return ReadTo(std::string("\0never", 6)); }
  int fd() const { return fd_; }

 private:
  int fd_;
  std::string received_;
};

std::string PostText(const std::string& path, const std::string& body,
                     const std::string& headers = "") {
  return absl::StrCat("POST ", path, " HTTP/1.1\r\nHost: x\r\n", headers,
                      "Content-Length: ", body.size(), "\r\n\r\n", body);
}

const char kGetHealth[] = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
const char kGetAndClose[] = "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
const char kStream[] =
    R"({"messages":[{"role":"user","content":"Hi"}],"stream":true,"max_tokens":4000})";
const char kStreamWithIds[] =
    R"({"messages":[{"role":"user","content":"Hi"}],"stream":true,"max_tokens":4000,)"
    R"("stream_options":{"include_event_ids":true}})";
const char kWhole[] = R"({"messages":[{"role":"user","content":"Hi"}]})";

class HttpServerTest : public ::testing::Test {
 protected:
  void Serve(HttpOptions options = {}) {
    options.port = 0;
    server_ = std::make_unique<HttpServer>(RealThreads(), options, world_.context);
    absl::StatusOr<int> port = server_->Start();
    ASSERT_TRUE(port.ok()) << port.status();
    port_ = *port;
  }
  template <typename Condition>
  void WaitUntil(Condition condition) {
    while (!condition()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  void WaitForRequests(int count) {
    WaitUntil([&] { return world_.inference.request_count() >= count; });
  }

  FakeWorld world_;
  std::unique_ptr<HttpServer> server_;
  int port_ = 0;
};

TEST_F(HttpServerTest, AnswersAndKeepsTheConnection) {
  Serve();
  Client client(port_);
  for (int i = 0; i < 3; ++i) {
    client.Send(kGetHealth);
    const std::string answer = client.ReadTo("\"ok\"}");
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
    EXPECT_THAT(answer, HasSubstr("Connection: keep-alive"));
  }
  client.Send("HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string head = client.ReadAll();
  EXPECT_THAT(head, HasSubstr("Content-Length: 15\r\n"));
  EXPECT_TRUE(head.ends_with("\r\n\r\n"));
}

TEST_F(HttpServerTest, PipelinedRequestsAreAnsweredInOrder) {
  Serve();
  world_.inference.AnswerWith(world_.Encode("</think>Seven"));
  Client client(port_);
  client.Send(PostText("/v1/chat/completions", kStream) +
              "GET /version HTTP/1.1\r\nHost: x\r\n\r\n" +
              PostText("/v1/chat/completions", kWhole) + kGetAndClose);
  const std::string answers = client.ReadAll();
  const size_t first = answers.find("[DONE]"), second = answers.find("{\"version\"");
  const size_t third = answers.find("\"chat.completion\""), fourth = answers.find("{\"status\"");
  EXPECT_LT(first, second);
  EXPECT_LT(second, third);
  EXPECT_LT(third, fourth);
  EXPECT_NE(fourth, answers.npos);
}

TEST_F(HttpServerTest, ARequestThatComesLateBehindAnotherIsAnswered) {
  Serve();
  Client client(port_);
  client.Send(PostText("/v1/chat/completions", kStream));
  client.ReadTo("assistant");
  client.Send(std::string(kGetAndClose).substr(0, 20));
  world_.inference.Append(0, 0, world_.Encode("a"));
  client.ReadTo("reasoning");
  world_.inference.Finish(0, 0, v1::FINISH_REASON_STOP);
  client.ReadTo("0\r\n\r\n");
  client.Send(std::string(kGetAndClose).substr(20));
  EXPECT_THAT(client.ReadAll(), HasSubstr("{\"status\":\"ok\"}"));
}

TEST_F(HttpServerTest, BytesBehindARequestHarmNothing) {
  Serve();
  for (const char* behind : {"\r\n", kGetHealth}) {
    Client client(port_);
    const int number = world_.inference.request_count();
    client.Send("\r\n" + PostText("/v1/chat/completions", kWhole));
    WaitForRequests(number + 1);
    client.Send(behind);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_EQ(world_.inference.live_stream_count(), 1);
    world_.inference.Append(number, 0, world_.Encode("</think>Seven"));
    world_.inference.Finish(number, 0, v1::FINISH_REASON_STOP);
    EXPECT_THAT(client.ReadTo("}}}"), HasSubstr("Seven"));
    if (behind != kGetHealth) client.Send(kGetAndClose);
    EXPECT_THAT(client.ReadTo("\"ok\"}"), StartsWith("HTTP/1.1 200"));
  }
}

TEST_F(HttpServerTest, StreamsTokensAsTheyCome) {
  Serve();
  Client client(port_);
  client.Send(PostText("/v1/chat/completions", kStream, "X-Request-Id: mine\r\n"));
  const std::string head = client.ReadTo("\r\n\r\n");
  EXPECT_THAT(head, HasSubstr("X-Request-Id: mine\r\n"));
  EXPECT_THAT(head, HasSubstr("Content-Type: text/event-stream"));
  EXPECT_THAT(head, HasSubstr("Transfer-Encoding: chunked"));
  EXPECT_THAT(client.ReadTo("\n\n"), HasSubstr("\"role\":\"assistant\""));
  for (const char* word : {"one", "two", "three"}) {
    world_.inference.Append(0, 0, world_.Encode(word));
    std::string seen;
    while (seen.find(word[0]) == seen.npos) seen += client.ReadTo("\n\n");
  }
  EXPECT_EQ(server_->active_requests(), 1);
  world_.inference.Finish(0, 0, v1::FINISH_REASON_STOP);
  EXPECT_THAT(client.ReadTo("0\r\n\r\n"), HasSubstr("[DONE]"));
  WaitUntil([&] { return server_->active_requests() == 0; });
}

TEST_F(HttpServerTest, AnOldClientGetsItsStreamUntilTheEnd) {
  Serve();
  world_.inference.AnswerWith(world_.Encode("x"));
  Client client(port_);
  client.Send(absl::StrCat("POST /v1/chat/completions HTTP/1.0\r\nContent-Length: ",
                           std::string(kStream).size(), "\r\n\r\n", kStream));
  const std::string answer = client.ReadAll();
  EXPECT_THAT(answer, testing::Not(HasSubstr("chunked")));
  EXPECT_TRUE(answer.ends_with("data: [DONE]\n\n"));
}

TEST_F(HttpServerTest, ThousandsOfIdleStreamsNeedOneThread) {
  constexpr int kStreams = 2000;
  rlimit files{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
  files.rlim_cur = files.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &files);
  if (files.rlim_cur < 2 * kStreams + 200) GTEST_SKIP() << "too few descriptors allowed";
  Serve({.thread_count = 1});
  std::vector<Client> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.emplace_back(port_);
    clients.back().Send(PostText("/v1/chat/completions", kStream));
  }
  for (Client& client : clients) EXPECT_THAT(client.ReadTo("\n\n"), StartsWith("HTTP/1.1 200"));
  EXPECT_EQ(server_->active_requests(), kStreams);
  EXPECT_EQ(world_.inference.live_stream_count(), kStreams);
  Client other(port_);
  other.Send(kGetAndClose);
  EXPECT_THAT(other.ReadAll(), HasSubstr("200 OK"));
  const std::vector<int32_t> tokens = world_.Encode("</think>Seven");
  for (int i = 0; i < kStreams; ++i) {
    world_.inference.Append(i, 0, tokens);
    world_.inference.Finish(i, 0, v1::FINISH_REASON_STOP);
  }
  for (Client& client : clients) {
    const std::string events = client.ReadTo("0\r\n\r\n");
    ASSERT_THAT(events, HasSubstr("[DONE]"));
  }
  WaitUntil([&] { return world_.inference.live_stream_count() == 0; });
}

TEST_F(HttpServerTest, VanishedClientsReleaseTheirRequests) {
  Serve();
  for (const char* body : {kStream, kWhole}) {
    std::vector<Client> clients;
    const int before = world_.inference.request_count();
    for (int i = 0; i < 50; ++i) {
      clients.emplace_back(port_);
      clients.back().Send(PostText("/v1/chat/completions", body));
    }
    WaitForRequests(before + 50);
    clients.clear();
    WaitUntil([&] { return world_.inference.live_stream_count() == 0; });
  }
  WaitUntil([&] { return server_->active_requests() == 0; });
  Client alive(port_);
  alive.Send(kGetAndClose);
  EXPECT_THAT(alive.ReadAll(), HasSubstr("200 OK"));
}

TEST_F(HttpServerTest, AClientThatTakesNothingIsDroppedAndHoldsLittle) {
  Serve({.write_timeout = absl::Milliseconds(300)});
  Client client(port_);
  const int small = 4096;
  ::setsockopt(client.fd(), SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
  client.Send(PostText("/v1/chat/completions", kStream));
  client.ReadTo("assistant");
  const std::vector<int32_t> tokens(200000, world_.Encode("a").front());
  world_.inference.Append(0, 0, tokens);
  WaitUntil([&] { return world_.inference.live_stream_count() == 0; });
}

TEST_F(HttpServerTest, ASlowReaderGetsEveryToken) {
  Serve();
  Client client(port_);
  client.Send(PostText("/v1/chat/completions", kStreamWithIds));
  client.ReadTo("assistant");
  const int32_t token = world_.Encode("a").front();
  constexpr int kTokens = 3000;
  for (int i = 0; i < kTokens; ++i) world_.inference.Append(0, 0, {token});
  world_.inference.Finish(0, 0, v1::FINISH_REASON_LENGTH);
  const std::string events = client.ReadTo("0\r\n\r\n");
  int pieces = 0;
  for (size_t at = 0; (at = events.find("\"reasoning_content\":\"a\"", at)) != events.npos; ++at) {
    ++pieces;
  }
  EXPECT_EQ(pieces, kTokens);
  EXPECT_THAT(events, HasSubstr(absl::StrCat(":", kTokens, "\ndata: ")));
}

// Returns what a waiting stream sends twice, between its events.
std::string KeptAlive(FakeInference& inference, Client& client, const std::vector<int32_t>& token,
                      const std::string& line) {
  client.ReadTo("assistant");
  inference.Append(0, 0, token);
  client.ReadTo("\"reasoning\":\"a\"");
  client.ReadTo("\n\n\r\n");
  const std::string between = client.ReadTo(line + "\r\n") + client.ReadTo(line + "\r\n");
  inference.Finish(0, 0, v1::FINISH_REASON_STOP);
  EXPECT_THAT(client.ReadTo("0\r\n\r\n"), HasSubstr("[DONE]"));
  return between;
}

TEST_F(HttpServerTest, WaitingStreamsAreKeptAliveByEmptyLines) {
  Serve({.comment_interval = absl::Milliseconds(20)});
  Client client(port_);
  client.Send(PostText("/v1/chat/completions", kStream));
  EXPECT_EQ(KeptAlive(world_.inference, client, world_.Encode("a"), "\n"),
            "1\r\n\n\r\n1\r\n\n\r\n");
}

TEST_F(HttpServerTest, WaitingStreamsWithEventIdsAreKeptAliveByComments) {
  Serve({.comment_interval = absl::Milliseconds(20)});
  Client client(port_);
  client.Send(PostText("/v1/chat/completions", kStreamWithIds));
  EXPECT_EQ(KeptAlive(world_.inference, client, world_.Encode("a"), ": waiting\n"),
            "a\r\n: waiting\n\r\na\r\n: waiting\n\r\n");
}

TEST_F(HttpServerTest, HugeBodiesAndHeadersAreRefused) {
  Serve({.body_bytes_max = 1000});
  const std::string big(2000, ' ');
  Client announced(port_);
  announced.Send(PostText("/v1/completions", big));
  EXPECT_THAT(announced.ReadAll(), StartsWith("HTTP/1.1 413"));
  Client chunked(port_);
  chunked.Send(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
      "7d0\r\n" +
      big + "\r\n0\r\n\r\n");
  EXPECT_THAT(chunked.ReadAll(), StartsWith("HTTP/1.1 413"));
  Client header(port_);
  header.Send("GET /health HTTP/1.1\r\nX: " + std::string(100000, 'x') + "\r\n\r\n");
  EXPECT_THAT(header.ReadAll(), StartsWith("HTTP/1.1 431"));
  Client endless(port_);
  endless.Send("POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999\r\n\r\n");
  EXPECT_THAT(endless.ReadAll(), StartsWith("HTTP/1.1 413"));
}

TEST_F(HttpServerTest, PagesMayReadErrorsAndPreflightsHaveNoBody) {
  Serve({.body_bytes_max = 1000});
  const std::string origin = "Origin: http://localhost:3000\r\n";
  const std::string allowed = "Access-Control-Allow-Origin: http://localhost:3000\r\n";
  Client large(port_);
  large.Send(PostText("/v1/completions", std::string(2000, ' '), origin));
  const std::string refused = large.ReadAll();
  EXPECT_THAT(refused, StartsWith("HTTP/1.1 413"));
  EXPECT_THAT(refused, HasSubstr(allowed));
  Client client(port_);
  client.Send("OPTIONS /v1/models HTTP/1.1\r\nHost: x\r\n" + origin + "\r\n" + kGetAndClose);
  const std::string preflight = client.ReadTo("\r\n\r\n");
  EXPECT_THAT(preflight, StartsWith("HTTP/1.1 204 No Content\r\n"));
  EXPECT_THAT(preflight, HasSubstr(allowed));
  EXPECT_THAT(preflight, testing::Not(HasSubstr("Content-")));
  EXPECT_THAT(client.ReadAll(), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, WhatIsNotHttpIsRefused) {
  Serve();
  for (const std::string& junk :
       {std::string(4096, '\0'), std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n"),
        std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls hello\r\n\r\n")}) {
    Client client(port_);
    client.Send(junk);
    const std::string answer = client.ReadAll();
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 400"));
    const Json error = Json::parse(answer.substr(answer.find("\r\n\r\n") + 4))["error"];
    EXPECT_EQ(error["type"], "invalid_request_error");
  }
}

TEST_F(HttpServerTest, SlowAndIdleClientsAreDropped) {
  Serve({.request_timeout = absl::Milliseconds(50), .idle_timeout = absl::Milliseconds(50)});
  Client silent(port_), slow(port_);
  slow.Send("POST /v1/completions HTTP/1.1\r\nContent-Le");
  EXPECT_EQ(silent.ReadAll(), "");
  EXPECT_THAT(slow.ReadAll(), StartsWith("HTTP/1.1 408"));
}

TEST_F(HttpServerTest, ABodyIsInvitedOnDemand) {
  Serve();
  world_.inference.AnswerWith(world_.Encode("</think>ok"));
  Client client(port_);
  client.Send(absl::StrCat("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n",
                           "Expect: 100-continue\r\nContent-Length: ", std::string(kWhole).size(),
                           "\r\n\r\n"));
  EXPECT_EQ(client.ReadTo("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send(kWhole);
  EXPECT_THAT(client.ReadTo("}}}"), StartsWith("HTTP/1.1 200 OK"));
}

TEST_F(HttpServerTest, TooManyConnectionsAreTurnedAway) {
  Serve({.connection_count_max = 2});
  Client first(port_), second(port_);
  for (Client* client : {&first, &second}) {
    client->Send(kGetHealth);
    client->ReadTo("\"ok\"}");
  }
  Client third(port_);
  const std::string answer = third.ReadAll();
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(answer, HasSubstr("Retry-After"));
}

TEST_F(HttpServerTest, DrainingEndsConnectionsAfterTheirAnswers) {
  Serve();
  Client idle(port_), busy(port_), streaming(port_);
  idle.Send(kGetHealth);
  idle.ReadTo("\"ok\"}");
  busy.Send(PostText("/v1/chat/completions", kWhole));
  WaitForRequests(1);
  streaming.Send(PostText("/v1/chat/completions", kStream));
  streaming.ReadTo("assistant");
  server_->Drain();
  EXPECT_EQ(idle.ReadAll(), "");
  world_.inference.Append(0, 0, world_.Encode("</think>Seven"));
  world_.inference.Finish(0, 0, v1::FINISH_REASON_STOP);
  const std::string answer = busy.ReadAll();
  EXPECT_THAT(answer, HasSubstr("Connection: close"));
  EXPECT_THAT(answer, HasSubstr("Seven"));
  world_.inference.Finish(1, 0, v1::FINISH_REASON_STOP);
  EXPECT_THAT(streaming.ReadAll(), HasSubstr("[DONE]"));
  Client late(port_);
  late.Send(kGetHealth);
  EXPECT_THAT(late.ReadAll(), HasSubstr("Connection: close"));
}

TEST_F(HttpServerTest, StoppingDropsOpenStreams) {
  Serve();
  Client client(port_);
  client.Send(PostText("/v1/chat/completions", kStream));
  client.ReadTo("assistant");
  server_->Stop();
  EXPECT_EQ(world_.inference.live_stream_count(), 0);
  client.ReadAll();
}

TEST_F(HttpServerTest, APortInUseIsTold) {
  Serve();
  HttpServer second(RealThreads(), {.port = port_}, world_.context);
  const absl::StatusOr<int> port = second.Start();
  ASSERT_FALSE(port.ok());
  EXPECT_THAT(std::string(port.status().message()), HasSubstr(absl::StrCat(port_)));
}

// Tokens, readers and deaths at once: for the thread sanitizer.
TEST_F(HttpServerTest, TokensFromAnotherThreadMeetVanishingClients) {
  Serve({.thread_count = 2});
  constexpr int kClients = 100;
  std::vector<Client> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back(port_);
    clients.back().Send(PostText("/v1/chat/completions", kStream));
  }
  WaitForRequests(kClients);
  const std::vector<int32_t> tokens = world_.Encode("a b c d e f");
  std::thread core([&] {
    for (int round = 0; round < 20; ++round) {
      for (int i = 0; i < kClients; ++i) world_.inference.Append(i, 0, tokens);
    }
    for (int i = 0; i < kClients; ++i) world_.inference.Finish(i, 0, v1::FINISH_REASON_STOP);
  });
  for (int i = 0; i < kClients; i += 2) Client gone(std::move(clients[i]));
  int whole = 0;
  for (int i = 1; i < kClients; i += 2) {
    const std::string events = clients[i].ReadTo("0\r\n\r\n");
    whole += events.find("[DONE]") != events.npos;
  }
  core.join();
  EXPECT_EQ(whole, kClients / 2);
  WaitUntil([&] { return world_.inference.live_stream_count() == 0; });
}

}  // namespace
}  // namespace epic::coordinator
