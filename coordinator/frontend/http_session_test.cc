#include "coordinator/frontend/http_session.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "coordinator/frontend/testing/fake_inference.h"

namespace epic::coordinator {
namespace {

// A wire whose client takes as much as the test says.
class FakeWire : public HttpWire {
 public:
  Sent Send(std::string bytes) override {
    EXPECT_FALSE(closed) << "something is sent after the end";
    output += bytes;
    if (takes_all && !flushing) return Sent::kAll;
    flushing = true;
    return Sent::kPart;
  }
  void SetTimer(absl::Duration delay) override { timer = delay < absl::InfiniteDuration(); }
  std::function<void()> AnswerListener() override {
    return [this] { woken = true; };
  }
  void EndSending() override { ended = true; }
  void Close() override { closed = true; }

  std::string output;
  bool takes_all = true;
  bool flushing = false;  // OnSent is due
  bool timer = false;
  bool woken = false;  // OnAnswer is due
  bool ended = false;
  bool closed = false;
};

struct ReadAnswer {
  int status = 0;
  std::string request_id;
  std::string body;
};

std::string HeaderOf(const std::string& head, const std::string& name) {
  const size_t at = head.find("\r\n" + name + ": ");
  if (at == head.npos) return "";
  const size_t from = at + name.size() + 4;
  return head.substr(from, head.find("\r\n", from) - from);
}

std::string Unchunked(const std::string& bytes, size_t* at) {
  std::string body;
  while (true) {
    const size_t line_end = bytes.find("\r\n", *at);
    if (line_end == bytes.npos) return body;
    const size_t size = std::stoul(bytes.substr(*at, line_end - *at), nullptr, 16);
    body += bytes.substr(line_end + 2, size);
    *at = line_end + 2 + size + 2;
    if (size == 0) return body;
  }
}

// The answers in what a connection sent, as a client reads them.
std::vector<ReadAnswer> Answers(const std::string& bytes) {
  std::vector<ReadAnswer> answers;
  size_t at = 0;
  while (at < bytes.size()) {
    const size_t head_end = bytes.find("\r\n\r\n", at);
    if (head_end == bytes.npos) break;
    const std::string head = bytes.substr(at, head_end + 2 - at);
    at = head_end + 4;
    ReadAnswer answer{.request_id = HeaderOf(head, "X-Request-Id")};
    EXPECT_TRUE(absl::SimpleAtoi(head.substr(9, 3), &answer.status)) << head;
    if (HeaderOf(head, "Transfer-Encoding") == "chunked") {
      answer.body = Unchunked(bytes, &at);
    } else {
      size_t size = 0;
      EXPECT_TRUE(absl::SimpleAtoi(HeaderOf(head, "Content-Length"), &size)) << head;
      answer.body = bytes.substr(at, size);
      at += size;
    }
    answers.push_back(answer);
  }
  return answers;
}

enum class Kind { kHealth, kUnknown, kWhole, kStream, kUpload };
constexpr Kind kKinds[] = {Kind::kHealth, Kind::kUnknown, Kind::kWhole, Kind::kStream,
                           Kind::kUpload};

std::string RequestBytes(Kind kind, int number) {
  const std::string head =
      absl::StrCat(" HTTP/1.1\r\nHost: x\r\nX-Request-Id: r", number, "\r\n");
  const std::string path = "POST /v1/completions";
  const std::string whole = R"({"prompt":"x"})", stream = R"({"prompt":"x","stream":true})";
  switch (kind) {
    case Kind::kHealth:
      return absl::StrCat("GET /health", head, "\r\n");
    case Kind::kUnknown:
      return absl::StrCat("GET /nothing", head, "\r\n");
    case Kind::kWhole:
      return absl::StrCat(path, head, "Content-Length: ", whole.size(), "\r\n\r\n", whole);
    case Kind::kStream:
      return absl::StrCat(path, head, "Content-Length: ", stream.size(), "\r\n\r\n", stream);
    case Kind::kUpload:
      return absl::StrCat(path, head, "Transfer-Encoding: chunked\r\n\r\n5\r\n", whole.substr(0, 5),
                          "\r\n9\r\n", whole.substr(5), "\r\n0\r\n\r\n");
  }
  return "";
}

bool Generates(Kind kind) { return kind != Kind::kHealth && kind != Kind::kUnknown; }

// One connection with requests that arrive, and answers that grow, in an order drawn from a seed.
class Arrival {
 public:
  Arrival(uint32_t seed, bool ends_early) : random_(seed), ends_early_(ends_early) {
    const int count = 1 + Draw(6);
    for (int i = 0; i < count; ++i) {
      kinds_.push_back(kKinds[Draw(std::size(kKinds))]);
      for (int lines = Draw(3); lines > 0; --lines) bytes_ += "\r\n";
      bytes_ += RequestBytes(kinds_.back(), i);
    }
    if (Draw(2) == 0) bytes_ += "\r\n";
    session_.Start();
  }

  void Run() {
    // Far more events than any order needs: a session that nothing wakes any more is seen by them.
    for (int event = 0; event < 20000 && !Done(); ++event) {
      if (ends_early_ && Draw(60) == 0 && !session_.closed()) {
        session_.OnEnd();
        ends_early_ = false;
        vanished_ = true;
      }
      if (!session_.closed()) OneEvent();
    }
    EXPECT_TRUE(Done()) << "nothing wakes the connection: " << sent_ << " of " << bytes_.size()
                        << " bytes, output " << wire_.output;
  }

  void Check() {
    if (vanished_) {
      while (!session_.closed() && wire_.flushing) Flushed();
      EXPECT_TRUE(session_.closed());
      EXPECT_EQ(world_.inference.live_stream_count(), 0);
      EXPECT_EQ(serving_.active_requests, 0);
      return;
    }
    const std::vector<ReadAnswer> answers = Answers(wire_.output);
    ASSERT_EQ(answers.size(), kinds_.size());
    for (size_t i = 0; i < kinds_.size(); ++i) CheckAnswer(kinds_[i], i, answers[i]);
    EXPECT_FALSE(session_.closed());
    EXPECT_TRUE(wire_.timer) << "an idle connection is dropped in the end";
    EXPECT_EQ(world_.inference.live_stream_count(), 0);
    EXPECT_EQ(serving_.active_requests, 0);
  }

 private:
  uint32_t Draw(uint32_t below) { return random_() % below; }

  bool Done() const {
    if (vanished_) return true;
    return sent_ == bytes_.size() && !wire_.flushing && serving_.active_requests == 0 &&
           answered_ == world_.inference.request_count() && !wire_.woken;
  }

  void Flushed() {
    wire_.flushing = false;
    session_.OnSent();
  }

  void OneEvent() {
    wire_.takes_all = Draw(4) != 0;
    switch (Draw(5)) {
      case 0:
      case 1:
        return Arrive();
      case 2:
        return Grow();
      case 3:
        if (wire_.flushing) Flushed();
        return;
      case 4:
        // Also without news: other answers' news may come at any time.
        wire_.woken = false;
        return session_.OnAnswer();
    }
  }

  void Arrive() {
    const size_t left = std::min(session_.room(), bytes_.size() - sent_);
    if (left == 0) return;
    const size_t size = Draw(2) == 0 ? left : 1 + Draw(std::min<size_t>(left, 40));
    session_.OnBytes(std::string_view(bytes_).substr(sent_, size));
    sent_ += size;
  }

  // A token more for the request that is being answered, or its end.
  void Grow() {
    if (answered_ == world_.inference.request_count()) return;
    if (Draw(3) != 0) return world_.inference.Append(answered_, 0, world_.Encode("ab"));
    world_.inference.Finish(answered_++, 0, v1::FINISH_REASON_STOP);
  }

  void CheckAnswer(Kind kind, size_t number, const ReadAnswer& answer) {
    EXPECT_EQ(answer.request_id, absl::StrCat("r", number));
    EXPECT_EQ(answer.status, kind == Kind::kUnknown ? 404 : 200);
    const bool done = absl::EndsWith(answer.body, "data: [DONE]\n\n");
    const bool stopped = absl::StrContains(answer.body, R"("finish_reason":"stop")");
    EXPECT_EQ(answer.body == R"({"status":"ok"})", kind == Kind::kHealth);
    EXPECT_EQ(done, kind == Kind::kStream);
    EXPECT_EQ(stopped, Generates(kind)) << answer.body;
  }

  std::mt19937 random_;
  FakeWorld world_;
  HttpServing serving_{{}, world_.context};
  FakeWire wire_;
  HttpSession session_{serving_, wire_};
  std::vector<Kind> kinds_;
  std::string bytes_;
  size_t sent_ = 0;
  int answered_ = 0;  // requests that inference has finished
  bool ends_early_ = false;
  bool vanished_ = false;
};

TEST(HttpSessionTest, WhateverTheOrderOfArrivalEveryRequestIsAnsweredWhole) {
  for (uint32_t seed = 0; seed < 300 && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Arrival arrival(seed, /*ends_early=*/false);
    arrival.Run();
    arrival.Check();
  }
}

TEST(HttpSessionTest, AClientThatEndsAnywhereLeavesNothingBehind) {
  for (uint32_t seed = 0; seed < 300 && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Arrival arrival(seed, /*ends_early=*/true);
    arrival.Run();
    arrival.Check();
  }
}

TEST(HttpSessionTest, BytesBehindARequestWaitUpToALimit) {
  FakeWorld world;
  HttpServing serving({}, world.context);
  FakeWire wire;
  HttpSession session(serving, wire);
  session.Start();
  session.OnBytes(RequestBytes(Kind::kWhole, 0));
  size_t taken = 0;
  for (int i = 0; i < 100 && session.room() > 0; ++i) {
    const std::string health = RequestBytes(Kind::kHealth, i);
    const size_t size = std::min(session.room(), size_t{8192});
    std::string many;
    while (many.size() < size) many += health;
    session.OnBytes(std::string_view(many).substr(0, size));
    taken += size;
  }
  EXPECT_EQ(session.room(), 0u);
  EXPECT_LE(taken, size_t{1} << 20);
  EXPECT_EQ(wire.output, "");
  world.inference.Finish(0, 0, v1::FINISH_REASON_STOP);
  session.OnAnswer();
  EXPECT_GT(Answers(wire.output).size(), 100u);
}

TEST(HttpSessionTest, TheEndOfAClientWaitsForWhatIsBeingSent) {
  FakeWorld world;
  HttpServing serving({}, world.context);
  FakeWire wire;
  HttpSession session(serving, wire);
  session.Start();
  wire.takes_all = false;
  session.OnBytes(RequestBytes(Kind::kHealth, 0));
  session.OnEnd();
  EXPECT_FALSE(session.closed());
  wire.flushing = false;
  session.OnSent();
  EXPECT_TRUE(session.closed());
}

}  // namespace
}  // namespace epic::coordinator
