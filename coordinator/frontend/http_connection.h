// One client's TCP connection: requests are read one after another (pipelined ones wait in the
// socket), answered by HttpApi, and the answer's source is pulled whenever the socket has taken
// what was written before. Included by http_server.cc alone: Boost takes long to compile.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <boost/asio.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "coordinator/frontend/http_api.h"
#include "coordinator/frontend/http_server.h"

namespace epic::coordinator {

namespace net = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using net::ip::tcp;

class HttpConnection;
struct HttpWaker;

// What all connections of a server share.
struct HttpShared {
  HttpShared(HttpOptions options_in, const FrontendContext& context_in)
      : options(std::move(options_in)),
        context(context_in),
        api(context_in),
        io(options.thread_count) {}

  const HttpOptions options;
  const FrontendContext& context;
  const HttpApi api;
  std::atomic<bool> draining = false;
  std::atomic<int> active_requests = 0;
  std::atomic<int> connection_count = 0;
  net::io_context io;
  // Connections whose sources grew: a step of a worker wakes many, and one task serves several.
  std::mutex woken_mutex;
  std::vector<std::shared_ptr<HttpWaker>> woken;
};

// A connection's wake-up in the hands of the core: it must not make the core's thread the owner of
// a connection, nor of what that holds.
struct HttpWaker {
  std::weak_ptr<HttpShared> shared;
  std::weak_ptr<HttpConnection> connection;
  std::atomic<bool> pending = false;
};

// All methods but Run belong on the connection's strand.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(std::shared_ptr<HttpShared> shared, tcp::socket socket);
  ~HttpConnection();

  // Calls `method` on the strand. Any thread.
  void Run(void (HttpConnection::*method)());

  // Serves requests until either side closes.
  void Start();
  // Tells the client that there are too many, and closes.
  void Refuse();
  // Closes if no request is being read or answered.
  void CloseIfIdle();
  void Close();

 private:
  enum class Phase { kIdle, kReading, kAnswering, kLingering, kClosed };

  void AwaitRequest();
  void Watch();
  void OnReadable();
  void ReadHeader();
  void ReadBody();
  void RefuseRequest(error_code error);
  void OnLate();
  void Reject(int status, const std::string& message);
  template <typename Message>
  static HttpRequest HeadOf(const Message& message);
  void Dispatch();
  static void Wake(const std::shared_ptr<HttpWaker>& waker);
  static void PullWoken(const std::shared_ptr<HttpShared>& shared);
  void PullAndWrite();
  void WriteAnswer(HttpAnswer answer);
  bool Write(std::string bytes, bool last);
  void OnWritten(error_code error, bool last);
  void FinishAnswer();
  void Linger();
  void Discard();
  void AwaitComment();
  void OnQuiet();
  void Arm(absl::Duration duration, void (HttpConnection::*on_expiry)());
  std::string Head(const HttpAnswer& answer, bool streams);
  std::string Chunk(const std::string& bytes) const;
  void SetActive(bool active);

  template <typename Method, typename... Bound>
  auto Handler(Method method, Bound... bound) {
    return [self = shared_from_this(), method, bound...](error_code error, auto&&...) {
      if (self->phase_ != Phase::kClosed) (self.get()->*method)(error, bound...);
    };
  }
  void OnHeader(error_code error);
  void OnBody(error_code error);
  void OnWait(error_code error);
  void OnDiscarded(error_code error);

  const std::shared_ptr<HttpShared> shared_;
  tcp::socket socket_;  // on its strand
  net::steady_timer timer_;
  int timer_sequence_ = 0;
  boost::beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  Phase phase_ = Phase::kIdle;
  bool watching_ = false;  // a wait for bytes or the client's end is out
  bool writing_ = false;
  bool active_ = false;
  // Of the current request.
  bool keep_alive_ = false, chunked_ = false, head_only_ = false, streams_ = false;
  std::unique_ptr<AnswerSource> source_;
  HttpAnswer head_;  // of source_'s answer
  std::string out_;  // being written
  bool awaits_comment_ = false;
  absl::Time quiet_since_;  // nothing was written since
};

inline HttpConnection::HttpConnection(std::shared_ptr<HttpShared> shared, tcp::socket socket)
    : shared_(std::move(shared)), socket_(std::move(socket)), timer_(socket_.get_executor()) {
  ++shared_->connection_count;
  error_code ignored;
  socket_.non_blocking(true, ignored);
}

inline HttpConnection::~HttpConnection() {
  SetActive(false);
  --shared_->connection_count;
}

inline void HttpConnection::Run(void (HttpConnection::*method)()) {
  net::post(socket_.get_executor(), [self = shared_from_this(), method] {
    if (self->phase_ != Phase::kClosed) (self.get()->*method)();
  });
}

inline void HttpConnection::Start() {
  error_code ignored;
  socket_.set_option(tcp::no_delay(true), ignored);
  AwaitRequest();
}

inline void HttpConnection::Refuse() {
  phase_ = Phase::kAnswering;
  WriteAnswer(ErrorAnswer(absl::UnavailableError(
      absl::StrCat("too many connections, at most ", shared_->options.connection_count_max))));
}

inline void HttpConnection::CloseIfIdle() {
  if (phase_ == Phase::kIdle) Close();
}

inline void HttpConnection::Close() {
  phase_ = Phase::kClosed;
  source_.reset();
  SetActive(false);
  timer_.cancel();
  error_code ignored;
  socket_.close(ignored);
}

inline void HttpConnection::AwaitRequest() {
  phase_ = Phase::kIdle;
  if (buffer_.size() > 0) return ReadHeader();
  Arm(shared_->options.idle_timeout, &HttpConnection::Close);
  Watch();
}

inline void HttpConnection::Watch() {
  if (watching_) return;
  watching_ = true;
  socket_.async_wait(tcp::socket::wait_read, Handler(&HttpConnection::OnWait));
}

inline void HttpConnection::OnWait(error_code error) {
  watching_ = false;
  if (error == net::error::operation_aborted) return;
  if (error) return Close();
  if (phase_ == Phase::kIdle) return ReadHeader();
  if (phase_ == Phase::kAnswering) OnReadable();
}

// While answering, only the client's end matters; bytes are its next request, which waits.
inline void HttpConnection::OnReadable() {
  char byte;
  const ssize_t size = ::recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  if (size > 0) return;
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return Watch();
  Close();
}

inline void HttpConnection::ReadHeader() {
  phase_ = Phase::kReading;
  Arm(shared_->options.request_timeout, &HttpConnection::OnLate);
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(shared_->options.header_bytes_max));
  parser_->body_limit(shared_->options.body_bytes_max);
  http::async_read_header(socket_, buffer_, *parser_, Handler(&HttpConnection::OnHeader));
}

inline void HttpConnection::OnHeader(error_code error) {
  if (phase_ != Phase::kReading) return;
  if (error) return RefuseRequest(error);
  const auto expect = parser_->get()[http::field::expect];
  if (!absl::EqualsIgnoreCase({expect.data(), expect.size()}, "100-continue")) return ReadBody();
  out_ = "HTTP/1.1 100 Continue\r\n\r\n";
  net::async_write(socket_, net::buffer(out_),
                   [self = shared_from_this()](error_code failed, size_t) {
                     if (self->phase_ != Phase::kReading) return;
                     failed ? self->Close() : self->ReadBody();
                   });
}

inline void HttpConnection::ReadBody() {
  http::async_read(socket_, buffer_, *parser_, Handler(&HttpConnection::OnBody));
}

inline void HttpConnection::OnBody(error_code error) {
  if (phase_ != Phase::kReading) return;
  error ? RefuseRequest(error) : Dispatch();
}

inline void HttpConnection::RefuseRequest(error_code error) {
  if (error.category() != http::make_error_code(http::error::bad_method).category() ||
      error == http::error::end_of_stream || error == http::error::partial_message) {
    return Close();
  }
  const HttpOptions& options = shared_->options;
  if (error == http::error::body_limit) {
    Reject(413, absl::StrCat("the body is larger than ", options.body_bytes_max, " bytes"));
  } else if (error == http::error::header_limit) {
    Reject(431, absl::StrCat("the header is larger than ", options.header_bytes_max, " bytes"));
  } else {
    Reject(400, absl::StrCat("not an HTTP request: ", error.message()));
  }
}

inline void HttpConnection::OnLate() {
  if (phase_ != Phase::kReading) return;
  error_code ignored;
  socket_.cancel(ignored);
  Reject(408, absl::StrCat("the request did not arrive within ",
                           absl::FormatDuration(shared_->options.request_timeout)));
}

// Answers what could not be read as a request, and closes.
inline void HttpConnection::Reject(int status, const std::string& message) {
  phase_ = Phase::kAnswering;
  keep_alive_ = head_only_ = chunked_ = false;
  const HttpRequest head = parser_ ? HeadOf(parser_->get()) : HttpRequest();
  WriteAnswer(shared_->api.Refuse(head, status, message));
}

// All but the body.
template <typename Message>
HttpRequest HttpConnection::HeadOf(const Message& message) {
  const auto text = [](auto view) { return std::string(view.data(), view.size()); };
  return {.method = text(message.method_string()),
          .target = text(message.target()),
          .authorization = text(message[http::field::authorization]),
          .request_id = text(message["X-Request-Id"]),
          .host = text(message[http::field::host]),
          .origin = text(message[http::field::origin]),
          .preflight_headers = text(message[http::field::access_control_request_headers]),
          .preflight_private = message["Access-Control-Request-Private-Network"] == "true"};
}

inline void HttpConnection::Dispatch() {
  http::request<http::string_body> message = parser_->release();
  parser_.reset();
  phase_ = Phase::kAnswering;
  SetActive(true);
  keep_alive_ = message.keep_alive();
  chunked_ = message.version() >= 11;
  head_only_ = message.method() == http::verb::head;
  HttpRequest request = HeadOf(message);
  request.body = std::move(message.body());
  HttpReply reply = shared_->api.Handle(request);
  if (reply.source == nullptr) return WriteAnswer(std::move(reply.answer));
  buffer_.shrink_to_fit();
  head_ = std::move(reply.answer);
  source_ = std::move(reply.source);
  Watch();
  auto waker = std::make_shared<HttpWaker>();
  waker->shared = shared_;
  waker->connection = weak_from_this();
  source_->SetListener([waker] { Wake(waker); });
  streams_ = source_->streams();
  timer_.cancel();
  ++timer_sequence_;
  if (!streams_ || Write(Head(head_, /*streams=*/true), /*last=*/false)) PullAndWrite();
}

inline void HttpConnection::Wake(const std::shared_ptr<HttpWaker>& waker) {
  if (waker->pending.exchange(true)) return;
  const std::shared_ptr<HttpShared> shared = waker->shared.lock();
  if (shared == nullptr) return;
  {
    const std::lock_guard lock(shared->woken_mutex);
    shared->woken.push_back(waker);
    if (shared->woken.size() > 1) return;  // a task is on its way
  }
  net::post(shared->io, [shared] { PullWoken(shared); });
}

inline void HttpConnection::PullWoken(const std::shared_ptr<HttpShared>& shared) {
  constexpr ptrdiff_t kAtOnce = 16;  // the rest is left to another thread
  std::vector<std::shared_ptr<HttpWaker>> woken;
  bool more = false;
  {
    const std::lock_guard lock(shared->woken_mutex);
    const auto end = shared->woken.begin() + std::min(kAtOnce, std::ssize(shared->woken));
    woken.assign(shared->woken.begin(), end);
    shared->woken.erase(shared->woken.begin(), end);
    more = !shared->woken.empty();
  }
  if (more) net::post(shared->io, [shared] { PullWoken(shared); });
  for (const std::shared_ptr<HttpWaker>& waker : woken) {
    waker->pending = false;
    const std::shared_ptr<HttpConnection> connection = waker->connection.lock();
    if (connection == nullptr) continue;
    net::dispatch(connection->socket_.get_executor(), [connection] {
      if (connection->phase_ == Phase::kAnswering) connection->PullAndWrite();
    });
  }
}

inline void HttpConnection::SetActive(bool active) {
  if (active_ != active) shared_->active_requests += active ? 1 : -1;
  active_ = active;
}

inline void HttpConnection::PullAndWrite() {
  while (source_ != nullptr && !writing_) {
    AnswerSource::Part part = source_->Pull();
    if (part.done) source_.reset();
    if (part.answer) {
      for (auto& header : head_.headers) part.answer->headers.push_back(std::move(header));
      return WriteAnswer(*std::move(part.answer));
    }
    if (part.bytes.empty() && !part.done) {
      if (streams_) AwaitComment();
      return;
    }
    std::string bytes = Chunk(part.bytes);
    if (part.done && chunked_) bytes += "0\r\n\r\n";
    Write(std::move(bytes), part.done);
  }
}

// Keeps proxies and clients from giving up on a stream that waits. The timer is not set anew with
// every write: it looks, when it goes off, how long it has been quiet.
inline void HttpConnection::AwaitComment() {
  quiet_since_ = shared_->context.clock.Now();
  if (awaits_comment_) return;
  Arm(shared_->options.comment_interval, &HttpConnection::OnQuiet);
  awaits_comment_ = true;
}

inline void HttpConnection::OnQuiet() {
  awaits_comment_ = false;
  if (writing_) return;
  const absl::Duration left =
      quiet_since_ + shared_->options.comment_interval - shared_->context.clock.Now();
  if (left > absl::Milliseconds(1)) {
    Arm(left, &HttpConnection::OnQuiet);
    awaits_comment_ = true;
    return;
  }
  if (Write(Chunk(source_->keep_alive()), /*last=*/false)) PullAndWrite();
}

inline void HttpConnection::WriteAnswer(HttpAnswer answer) {
  std::string bytes = Head(answer, /*streams=*/false);
  if (!head_only_) bytes += answer.body;
  Write(std::move(bytes), /*last=*/true);
}

// Whether the socket took all and the answer goes on; otherwise what follows happens by itself.
inline bool HttpConnection::Write(std::string bytes, bool last) {
  error_code error;
  const size_t written = socket_.write_some(net::buffer(bytes), error);
  if (error && error != net::error::would_block) {
    Close();
    return false;
  }
  if (written == bytes.size()) {
    if (last) FinishAnswer();
    return !last;
  }
  writing_ = true;
  out_ = std::move(bytes);
  Arm(shared_->options.write_timeout, &HttpConnection::Close);
  net::async_write(socket_, net::buffer(out_) + written, Handler(&HttpConnection::OnWritten, last));
  return false;
}

inline void HttpConnection::OnWritten(error_code error, bool last) {
  writing_ = false;
  if (error) return Close();
  last ? FinishAnswer() : PullAndWrite();
}

inline void HttpConnection::FinishAnswer() {
  SetActive(false);
  source_.reset();
  out_ = std::string();
  keep_alive_ && !shared_->draining ? AwaitRequest() : Linger();
}

// Lets the client read the answer: closing on unread bytes would reset the connection.
inline void HttpConnection::Linger() {
  phase_ = Phase::kLingering;
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  Arm(absl::Seconds(2), &HttpConnection::Close);
  buffer_.clear();
  Discard();
}

inline void HttpConnection::Discard() {
  buffer_.clear();
  socket_.async_read_some(buffer_.prepare(16 << 10), Handler(&HttpConnection::OnDiscarded));
}

inline void HttpConnection::OnDiscarded(error_code error) { error ? Close() : Discard(); }

inline void HttpConnection::Arm(absl::Duration duration, void (HttpConnection::*on_expiry)()) {
  awaits_comment_ = false;
  timer_.expires_after(absl::ToChronoMilliseconds(duration));
  timer_.async_wait(
      [self = shared_from_this(), on_expiry, sequence = ++timer_sequence_](error_code error) {
        const bool current = sequence == self->timer_sequence_ && self->phase_ != Phase::kClosed;
        if (!error && current) (self.get()->*on_expiry)();
      });
}

inline std::string HttpConnection::Head(const HttpAnswer& answer, bool streams) {
  if (shared_->draining || (streams && !chunked_)) keep_alive_ = false;
  const auto reason = http::obsolete_reason(http::int_to_status(answer.status));
  std::string head = absl::StrCat("HTTP/1.1 ", answer.status, " ",
                                  absl::string_view(reason.data(), reason.size()), "\r\n");
  absl::StrAppend(&head, "Date: ",
                  absl::FormatTime("%a, %d %b %E4Y %H:%M:%S GMT", shared_->context.clock.Now(),
                                   absl::UTCTimeZone()),
                  "\r\n");
  const bool has_body = !answer.content_type.empty();
  if (has_body) absl::StrAppend(&head, "Content-Type: ", answer.content_type, "\r\n");
  for (const auto& [name, value] : answer.headers) {
    absl::StrAppend(&head, name, ": ", value, "\r\n");
  }
  if (!streams && has_body) absl::StrAppend(&head, "Content-Length: ", answer.body.size(), "\r\n");
  if (streams && chunked_) absl::StrAppend(&head, "Transfer-Encoding: chunked\r\n");
  absl::StrAppend(&head, "Connection: ", keep_alive_ ? "keep-alive" : "close", "\r\n\r\n");
  return head;
}

inline std::string HttpConnection::Chunk(const std::string& bytes) const {
  if (!chunked_ || bytes.empty()) return bytes;
  return absl::StrCat(absl::Hex(bytes.size()), "\r\n", bytes, "\r\n");
}

}  // namespace epic::coordinator
