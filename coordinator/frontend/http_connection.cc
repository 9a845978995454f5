#include "coordinator/frontend/http_connection.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>

#include "base/check.h"

namespace epic::coordinator {

struct HttpWaker {
  std::weak_ptr<HttpShared> shared;
  std::weak_ptr<HttpConnection> connection;
  std::atomic<bool> pending = false;  // it is in HttpShared's list
};

void HttpShared::Accept(tcp::socket socket) {
  auto connection = std::make_shared<HttpConnection>(shared_from_this(), std::move(socket));
  bool full = false;
  {
    const absl::MutexLock lock(&mutex_);
    full = std::ssize(connections_) >= serving.options.connection_count_max;
    // A connection beyond the limit is held as well, until its session has told the client so.
    connections_.emplace(connection.get(), connection);
  }
  connection->Run(full ? &HttpSession::Refuse : &HttpSession::Start);
}

void HttpShared::Release(const HttpConnection* connection) {
  std::shared_ptr<HttpConnection> last;  // must not die under the lock
  const absl::MutexLock lock(&mutex_);
  const auto found = connections_.find(connection);
  if (found == connections_.end()) return;  // CloseAll has it
  last = std::move(found->second);
  connections_.erase(found);
}

void HttpShared::ForEach(void (HttpSession::*event)()) {
  const absl::MutexLock lock(&mutex_);
  // Run only posts, so no session works under this lock.
  for (const auto& [key, connection] : connections_) connection->Run(event);
}

void HttpShared::CloseAll() {
  // The map is emptied first, because each Close calls Release, which takes the lock.
  std::map<const HttpConnection*, std::shared_ptr<HttpConnection>> all;
  {
    const absl::MutexLock lock(&mutex_);
    all.swap(connections_);
  }
  for (const auto& [key, connection] : all) connection->session().Close();
}

void HttpShared::Wake(const std::shared_ptr<HttpWaker>& waker) {
  {
    const absl::MutexLock lock(&woken_mutex_);
    woken_.push_back(waker);
    // A task is posted, or about to be, as long as the list is not empty; one is enough for all.
    if (woken_.size() > 1) return;
  }
  net::post(io, [self = shared_from_this()] { self->PullWoken(); });
}

void HttpShared::PullWoken() {
  // A step of a worker wakes up to some hundred streams. A task takes a few of them (the number is
  // chosen), and leaves the rest to another thread.
  constexpr ptrdiff_t kAtOnce = 16;
  std::vector<std::shared_ptr<HttpWaker>> woken;
  bool more = false;
  {
    const absl::MutexLock lock(&woken_mutex_);
    const auto end = woken_.begin() + std::min(kAtOnce, std::ssize(woken_));
    woken.assign(woken_.begin(), end);
    woken_.erase(woken_.begin(), end);
    more = !woken_.empty();
  }
  // The post comes before the pulls, so that another thread can begin at once.
  if (more) net::post(io, [self = shared_from_this()] { self->PullWoken(); });
  for (const std::shared_ptr<HttpWaker>& waker : woken) {
    // Before the pull: what comes during it must wake again.
    waker->pending = false;
    if (const auto connection = waker->connection.lock()) {
      connection->RunNow(&HttpSession::OnAnswer);
    }
  }
}

HttpConnection::HttpConnection(std::shared_ptr<HttpShared> shared, tcp::socket socket)
    : shared_(std::move(shared)),
      socket_(std::move(socket)),
      timer_(socket_.get_executor()),
      session_(shared_->serving, *this) {
  error_code ignored;
  // The socket is read and written directly, and would_block tells when to wait. Events are small
  // and clients wait for each of them: Nagle's algorithm would hold them back.
  socket_.non_blocking(true, ignored);
  socket_.set_option(tcp::no_delay(true), ignored);
  // A client whose machine is gone says nothing; without this its requests would run to their end.
  socket_.set_option(net::socket_base::keep_alive(true), ignored);
}

void HttpConnection::Run(void (HttpSession::*event)()) {
  net::post(socket_.get_executor(), [self = shared_from_this(), event] { self->Handle(event); });
}

void HttpConnection::RunNow(void (HttpSession::*event)()) {
  net::dispatch(socket_.get_executor(),
                [self = shared_from_this(), event] { self->Handle(event); });
}

// Every event ends here: whatever the session did, the next bytes are waited for if it has room.
void HttpConnection::Handle(void (HttpSession::*event)()) {
  // Handlers that were queued before Close still come.
  if (session_.closed()) return;
  (session_.*event)();
  AwaitBytes();
}

void HttpConnection::AwaitBytes() {
  if (session_.closed() || waiting_ || session_.room() == 0) return;
  waiting_ = true;
  // The wait needs no buffer, unlike a read, so an idle connection holds none.
  socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](error_code error) {
    self->OnReadable(error);
  });
}

void HttpConnection::OnReadable(error_code error) {
  CHECK(waiting_) << "nobody waited for bytes";
  waiting_ = false;
  if (session_.closed()) return;
  std::array<char, 16 << 10> bytes;
  const size_t room = std::min(session_.room(), bytes.size());
  if (room == 0 && !error) return;  // another event took it; AwaitBytes follows the next one
  size_t size = 0;
  if (!error) size = socket_.read_some(net::buffer(bytes.data(), room), error);
  if (!error) {
    session_.OnBytes({bytes.data(), size});
  } else if (error == net::error::eof) {
    session_.OnEnd();
  } else if (error != net::error::would_block && error != net::error::interrupted) {
    session_.Close();
  }
  AwaitBytes();
}

HttpWire::Sent HttpConnection::Send(std::string bytes) {
  // async_write reads from out_ until it is done, so out_ must not change meanwhile.
  if (!out_.empty()) {
    next_out_ += bytes;
    return Sent::kPart;
  }
  error_code error;
  // Most answers fit into the socket's own buffer and need no turn of the loop.
  const size_t written = socket_.write_some(net::buffer(bytes), error);
  if (error && error != net::error::would_block) return Sent::kFailed;
  if (written == bytes.size()) return Sent::kAll;
  bytes.erase(0, written);
  out_ = std::move(bytes);
  Flush();
  return Sent::kPart;
}

void HttpConnection::Flush() {
  net::async_write(
      socket_, net::buffer(out_),
      [self = shared_from_this()](error_code error, size_t) { self->OnFlushed(error); });
}

void HttpConnection::OnFlushed(error_code error) {
  if (session_.closed()) return;
  if (error) return session_.Close();
  out_ = std::exchange(next_out_, std::string());
  if (!out_.empty()) return Flush();
  Handle(&HttpSession::OnSent);
}

void HttpConnection::SetTimer(absl::Duration delay) {
  // A handler that is queued already is cancelled no more; its old number makes it harmless.
  const int sequence = ++timer_sequence_;
  if (delay == absl::InfiniteDuration()) {
    timer_.cancel();
    return;
  }
  timer_.expires_after(absl::ToChronoMilliseconds(delay));
  timer_.async_wait([self = shared_from_this(), sequence](error_code error) {
    if (!error && sequence == self->timer_sequence_) self->Handle(&HttpSession::OnTimer);
  });
}

std::function<void()> HttpConnection::AnswerListener() {
  auto waker = std::make_shared<HttpWaker>();
  waker->shared = shared_;
  waker->connection = weak_from_this();
  return [waker] {
    // A waker is in the list once, however often the journal grows until the pull.
    if (waker->pending.exchange(true)) return;
    if (const std::shared_ptr<HttpShared> shared = waker->shared.lock()) shared->Wake(waker);
  };
}

void HttpConnection::EndSending() {
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
}

void HttpConnection::Close() {
  ++timer_sequence_;
  timer_.cancel();
  error_code ignored;
  socket_.close(ignored);
  shared_->Release(this);
}

}  // namespace epic::coordinator
