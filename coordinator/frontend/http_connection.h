// HttpConnection: the socket, the strand and the timer of one client's HttpSession. Included by the
// .cc files of the HTTP server alone: Boost takes long to compile.
//
// Ownership: HttpShared holds each connection from its acceptance until it closes, and Close is the
// only way out. Handlers and wakers borrow it.
#pragma once

#include <boost/asio/dispatch.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/write.hpp>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/frontend/http_session.h"

namespace epic::coordinator {

namespace net = boost::asio;
using boost::system::error_code;
using net::ip::tcp;

class HttpConnection;

// A connection's wake-up in the hands of the core: it must not make the core's thread the owner of
// a connection, nor of what that holds.
struct HttpWaker;

// All connections of a server, and what they share. Thread-safe.
class HttpShared : public std::enable_shared_from_this<HttpShared> {
 public:
  HttpShared(HttpOptions options, const FrontendContext& context)
      : serving(std::move(options), context), io(serving.options.thread_count) {}

  // Takes a client's socket, on a strand of its own. It is told that there are too many, if so.
  void Accept(tcp::socket socket);
  // Forgets it; it dies with the handler that runs.
  void Release(const HttpConnection* connection);
  // Calls `event` of every connection's session, on its strand.
  void ForEach(void (HttpSession::*event)());
  // Closes all. No other thread may run any more.
  void CloseAll();
  // `waker`'s session hears of news of its answer.
  void Wake(const std::shared_ptr<HttpWaker>& waker);

  HttpServing serving;
  net::io_context io;

 private:
  void PullWoken();

  absl::Mutex mutex_;
  std::map<const HttpConnection*, std::shared_ptr<HttpConnection>> connections_
      ABSL_GUARDED_BY(mutex_);
  // Connections whose sources grew: a step of a worker wakes many, and one task serves several.
  absl::Mutex woken_mutex_;
  std::vector<std::shared_ptr<HttpWaker>> woken_ ABSL_GUARDED_BY(woken_mutex_);
};

// All methods but Run belong on the connection's strand.
class HttpConnection : public HttpWire, public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(std::shared_ptr<HttpShared> shared, tcp::socket socket);

  // Calls `event` of the session on the strand. Any thread.
  void Run(void (HttpSession::*event)());
  // The same, at once if this thread is on the strand already.
  void RunNow(void (HttpSession::*event)());

  Sent Send(std::string bytes) override;
  void SetTimer(absl::Duration delay) override;
  std::function<void()> AnswerListener() override;
  void EndSending() override;
  void Close() override;

  HttpSession& session() { return session_; }

 private:
  void Handle(void (HttpSession::*event)());
  void AwaitBytes();
  void OnReadable(error_code error);
  void Flush();
  void OnFlushed(error_code error);

  const std::shared_ptr<HttpShared> shared_;
  tcp::socket socket_;  // on its strand
  net::steady_timer timer_;
  int timer_sequence_ = 0;  // of the timer that counts: a late one of before may still go off
  bool waiting_ = false;    // for bytes or the client's end
  std::string out_;         // being written
  std::string next_out_;    // behind it
  HttpSession session_;
};

}  // namespace epic::coordinator
