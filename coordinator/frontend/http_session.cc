#include "coordinator/frontend/http_session.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace epic::coordinator {
namespace {

// Bytes that are read from the socket at once (chosen); a longer request is read piece by piece.
constexpr size_t kReadBytes = 16 << 10;
// Bytes that wait behind a request. Beyond them nothing is read, so the client's end is seen only
// when something is sent to it.
constexpr size_t kEarlyBytesMax = 64 << 10;
// The time that a client has to read its last answer (chosen). A connection that is closed while
// bytes of the client are unread is reset, and the reset may overtake the answer.
constexpr absl::Duration kLingerTime = absl::Seconds(2);

const char* ReasonPhrase(int status) {
  // Programs go by the number alone (RFC 9112, section 4); the phrase is for people.
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Payload Too Large";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Unknown";
  }
}

}  // namespace

HttpSession::HttpSession(HttpServing& serving, HttpWire& wire)
    : serving_(serving), wire_(wire), reader_(serving.options) {}

// A drain waits for the count, so a connection that is torn down must not stay in it.
HttpSession::~HttpSession() { SetActive(false); }

void HttpSession::Start() { Arm(Timer::kIdle, serving_.options.idle_timeout); }

void HttpSession::Refuse() {
  phase_ = Phase::kAnswering;
  // No request was read, so keep_alive_ is still false and the connection closes behind this.
  SendWhole(ErrorAnswer(absl::UnavailableError(
      absl::StrCat("too many connections, at most ", serving_.options.connection_count_max))));
}

void HttpSession::CloseIfIdle() {
  if (phase_ == Phase::kIdle) Close();
}

void HttpSession::Close() {
  if (closed()) return;
  phase_ = Phase::kClosed;
  source_.reset();
  SetActive(false);
  wire_.Close();
}

size_t HttpSession::room() const {
  // While an answer is made bytes are read on, up to a limit: only so the client's end is seen in
  // time.
  if (ended_ || closed()) return 0;
  if (phase_ != Phase::kAnswering) return kReadBytes;
  return kEarlyBytesMax - std::min(reader_.buffered(), kEarlyBytesMax);
}

void HttpSession::OnBytes(std::string_view bytes) {
  CHECK_LE(bytes.size(), room());
  // The bytes are read and thrown away, because unread ones would make the close a reset
  // (kLingerTime).
  if (phase_ == Phase::kLingering) return;
  reader_.Add(bytes);
  Advance();
}

void HttpSession::OnEnd() {
  ended_ = true;
  // A client that vanishes shows only its end, so nothing is computed beyond it. An answer that is
  // complete still goes out: the client may have ended its sending alone.
  const bool only_sends = phase_ == Phase::kAnswering && source_ == nullptr;
  if (!only_sends) Close();
}

void HttpSession::OnSent() {
  if (!sending_) return;  // an invitation went out
  sending_ = false;
  Arm(Timer::kNone, absl::InfiniteDuration());
  last_ ? FinishAnswer() : Pull();
  Advance();
}

void HttpSession::OnAnswer() {
  // A wake-up of an earlier answer may come this late. Within the next answer it is one pull more,
  // which does no harm.
  if (phase_ != Phase::kAnswering) return;
  Pull();
  Advance();
}

void HttpSession::OnTimer() {
  // The timer is cleared first, because what follows may set it anew.
  switch (std::exchange(timer_, Timer::kNone)) {
    case Timer::kNone:
      return;
    case Timer::kQuiet:
      return OnQuiet();
    case Timer::kRequest:
      return Reject(reader_.head(), 408,
                    absl::StrCat("the request did not arrive within ",
                                 absl::FormatDuration(serving_.options.request_timeout)));
    case Timer::kIdle:
    case Timer::kWrite:
    case Timer::kLinger:
      return Close();
  }
}

// Answers what is here already, one request after another. A loop, not a recursion: a client may
// send a thousand requests at once.
void HttpSession::Advance() {
  while (phase_ == Phase::kIdle || phase_ == Phase::kReading) {
    switch (reader_.Read()) {
      case HttpRequestReader::State::kWhole:
        Answer(reader_.Take());
        continue;
      case HttpRequestReader::State::kRefused:
        return Reject(reader_.refusal().head, reader_.refusal().status, reader_.refusal().message);
      case HttpRequestReader::State::kInvites:
        // If a part of it has to wait, the answer queues up behind it, and OnSent passes it over.
        if (wire_.Send("HTTP/1.1 100 Continue\r\n\r\n") == HttpWire::Sent::kFailed) return Close();
        [[fallthrough]];
      case HttpRequestReader::State::kPartial:
        BeginReading();
        [[fallthrough]];
      case HttpRequestReader::State::kEmpty:
        if (ended_) Close();
        return;
    }
  }
}

void HttpSession::BeginReading() {
  if (phase_ == Phase::kReading) return;
  phase_ = Phase::kReading;
  Arm(Timer::kRequest, serving_.options.request_timeout);
}

void HttpSession::Answer(HttpMessage message) {
  CHECK(source_ == nullptr && !sending_) << "the answer before has not ended";
  phase_ = Phase::kAnswering;
  // From here on a drain waits for this request.
  SetActive(true);
  Arm(Timer::kNone, absl::InfiniteDuration());
  keep_alive_ = message.keep_alive;
  chunked_ = message.chunked;
  head_only_ = message.head_only;
  HttpReply reply = serving_.api.Handle(message.request);
  if (reply.source == nullptr) return SendWhole(std::move(reply.answer));
  head_ = std::move(reply.answer);
  source_ = std::move(reply.source);
  if (ended_) return Close();
  streams_ = source_->streams();
  source_->SetListener(wire_.AnswerListener());
  // The head of a stream goes at once: the client learns that the request is accepted long before
  // the prompt is computed.
  if (!streams_ || Send(Head(head_, /*streams=*/true), /*last=*/false)) Pull();
}

// Answers what could not be read as a request, and closes. Nobody knows where such a request ends,
// so nothing behind it may be taken for another one (request smuggling).
void HttpSession::Reject(const HttpRequest& head, int status, const std::string& message) {
  phase_ = Phase::kAnswering;
  keep_alive_ = head_only_ = chunked_ = false;
  SendWhole(serving_.api.Refuse(head, status, message));
}

void HttpSession::Pull() {
  while (source_ != nullptr && !sending_) {
    AnswerSource::Part part = source_->Pull();
    if (part.answer) {
      source_.reset();
      // The head was made when the request came; only now the status and the body are known.
      for (auto& header : head_.headers) part.answer->headers.push_back(std::move(header));
      return SendWhole(*std::move(part.answer));
    }
    if (part.bytes.empty() && !part.done) {
      if (streams_) AwaitQuiet();
      return;
    }
    // The source goes before its last bytes are sent: from now on the client's end has nothing to
    // cancel (OnEnd).
    if (part.done) source_.reset();
    std::string bytes = Chunk(part.bytes);
    if (part.done && chunked_) bytes += "0\r\n\r\n";
    Send(std::move(bytes), part.done);
  }
}

// Keeps proxies and clients from giving up on a stream that waits. The timer is not set anew with
// every write: when it goes off, it looks how long the stream has been quiet.
void HttpSession::AwaitQuiet() {
  quiet_since_ = serving_.context.clock.Now();
  if (timer_ != Timer::kQuiet) Arm(Timer::kQuiet, serving_.options.comment_interval);
}

void HttpSession::OnQuiet() {
  if (source_ == nullptr || sending_) return;
  const absl::Duration left =
      quiet_since_ + serving_.options.comment_interval - serving_.context.clock.Now();
  // The wire's timer counts whole milliseconds, and may go off up to one of them early.
  if (left > absl::Milliseconds(1)) return Arm(Timer::kQuiet, left);
  if (Send(Chunk(source_->keep_alive()), /*last=*/false)) Pull();
}

void HttpSession::SendWhole(HttpAnswer answer) {
  std::string bytes = Head(answer, /*streams=*/false);
  if (!head_only_) bytes += answer.body;
  Send(std::move(bytes), /*last=*/true);
}

// Whether the wire took all and the answer goes on; otherwise what follows happens by itself.
bool HttpSession::Send(std::string bytes, bool last) {
  CHECK(!sending_) << "the wire has not sent what it has";
  switch (wire_.Send(std::move(bytes))) {
    case HttpWire::Sent::kFailed:
      Close();
      return false;
    case HttpWire::Sent::kPart:
      sending_ = true;
      last_ = last;
      Arm(Timer::kWrite, serving_.options.write_timeout);
      return false;
    case HttpWire::Sent::kAll:
      if (last) FinishAnswer();
      return !last;
  }
  return false;
}

void HttpSession::FinishAnswer() {
  SetActive(false);
  // The drain may have begun after the head had promised keep-alive. A client must bear a close
  // between two requests at any time.
  if (!keep_alive_ || serving_.draining) return Linger();
  phase_ = Phase::kIdle;
  Arm(Timer::kIdle, serving_.options.idle_timeout);
}

void HttpSession::Linger() {
  if (ended_) return Close();
  phase_ = Phase::kLingering;
  wire_.EndSending();
  Arm(Timer::kLinger, kLingerTime);
}

void HttpSession::Arm(Timer timer, absl::Duration delay) {
  // One timer is enough, because a session waits for one thing at a time.
  timer_ = timer;
  wire_.SetTimer(delay);
}

std::string HttpSession::Head(const HttpAnswer& answer, bool streams) {
  // HTTP/1.0 has no chunks: the end of its stream is the end of the connection.
  if (serving_.draining || (streams && !chunked_)) keep_alive_ = false;
  std::string head =
      absl::StrCat("HTTP/1.1 ", answer.status, " ", ReasonPhrase(answer.status), "\r\n");
  absl::StrAppend(&head, "Date: ",
                  absl::FormatTime("%a, %d %b %E4Y %H:%M:%S GMT", serving_.context.clock.Now(),
                                   absl::UTCTimeZone()),
                  "\r\n");
  const bool has_body = !answer.content_type.empty();
  if (has_body) absl::StrAppend(&head, "Content-Type: ", answer.content_type, "\r\n");
  for (const auto& [name, value] : answer.headers) {
    absl::StrAppend(&head, name, ": ", value, "\r\n");
  }
  if (!streams && has_body) {
    absl::StrAppend(&head, "Content-Length: ", answer.body.size(), "\r\n");
  }
  if (streams && chunked_) absl::StrAppend(&head, "Transfer-Encoding: chunked\r\n");
  absl::StrAppend(&head, "Connection: ", keep_alive_ ? "keep-alive" : "close", "\r\n\r\n");
  return head;
}

std::string HttpSession::Chunk(const std::string& bytes) const {
  if (!chunked_ || bytes.empty()) return bytes;
  return absl::StrCat(absl::Hex(bytes.size()), "\r\n", bytes, "\r\n");
}

void HttpSession::SetActive(bool active) {
  // Several ways out call this; each request counts once.
  if (active_ != active) serving_.active_requests += active ? 1 : -1;
  active_ = active;
}

}  // namespace epic::coordinator
