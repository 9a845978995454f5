// HttpSession: what happens on one HTTP connection, without its socket: bytes, the client's end,
// timers and news of the answer come in as events; bytes go out through an HttpWire.
//
// Requests are answered one after another. Bytes that arrive behind a request wait in the session
// until it is answered. The client's end cancels what is still computed for it; what is already
// being sent goes out.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "coordinator/frontend/http_api.h"
#include "coordinator/frontend/http_options.h"
#include "coordinator/frontend/http_request_reader.h"

namespace epic::coordinator {

// What all connections of a server share. Any thread may use it.
struct HttpServing {
  HttpServing(HttpOptions options_in, const FrontendContext& context_in)
      : options(std::move(options_in)), context(context_in), api(context_in) {}

  const HttpOptions options;
  const FrontendContext& context;  // outlives this
  const HttpApi api;
  std::atomic<bool> draining = false;
  std::atomic<int> active_requests = 0;
};

// The socket and the timer of a connection, as its session uses them.
class HttpWire {
 public:
  enum class Sent {
    kAll,
    kPart,    // the rest goes out by itself, then HttpSession::OnSent is called
    kFailed,  // the client is gone
  };
  virtual ~HttpWire() = default;
  // Behind what was sent before.
  virtual Sent Send(std::string bytes) = 0;
  // Calls HttpSession::OnTimer once, `delay` from now (infinite: never), instead of what was set
  // before.
  virtual void SetTimer(absl::Duration delay) = 0;
  // A function for any thread: HttpSession::OnAnswer is called soon after it.
  virtual std::function<void()> AnswerListener() = 0;
  // Tells the client that nothing more comes.
  virtual void EndSending() = 0;
  // Nothing is called any more. The session is destroyed later, not within this.
  virtual void Close() = 0;
};

// One thread at a time (a connection's strand). No event may come after closed().
class HttpSession {
 public:
  // Both outlive this.
  HttpSession(HttpServing& serving, HttpWire& wire);
  ~HttpSession();
  HttpSession(const HttpSession&) = delete;
  HttpSession& operator=(const HttpSession&) = delete;

  // The first event: either one.
  void Start();
  // Tells the client that there are too many connections, and closes.
  void Refuse();

  // At most room() bytes.
  void OnBytes(std::string_view bytes);
  // The client sends no more.
  void OnEnd();
  void OnSent();
  void OnTimer();
  void OnAnswer();
  void CloseIfIdle();
  void Close();

  // Bytes that the session takes now; it may change with each event.
  size_t room() const;
  bool closed() const { return phase_ == Phase::kClosed; }

 private:
  enum class Phase {
    kIdle,       // no byte of a request is here
    kReading,    // a request has begun
    kAnswering,  // a request is being answered
    kLingering,  // all is sent; the client may read it before the connection is closed
    kClosed,
  };
  enum class Timer { kNone, kIdle, kRequest, kWrite, kQuiet, kLinger };

  void Advance();
  void BeginReading();
  void Answer(HttpMessage message);
  void Reject(const HttpRequest& head, int status, const std::string& message);
  void Pull();
  void SendWhole(HttpAnswer answer);
  bool Send(std::string bytes, bool last);
  void FinishAnswer();
  void Linger();
  void AwaitQuiet();
  void OnQuiet();
  void Arm(Timer timer, absl::Duration delay);
  std::string Head(const HttpAnswer& answer, bool streams);
  std::string Chunk(const std::string& bytes) const;
  void SetActive(bool active);

  HttpServing& serving_;
  HttpWire& wire_;
  HttpRequestReader reader_;
  Phase phase_ = Phase::kIdle;
  Timer timer_ = Timer::kNone;
  bool ended_ = false;    // the client sends no more
  bool sending_ = false;  // OnSent comes
  bool active_ = false;   // counted in active_requests
  absl::Time quiet_since_;
  // These are of the request that is being answered.
  bool keep_alive_ = false, chunked_ = false, head_only_ = false, streams_ = false;
  bool last_ = false;  // what is being sent is the end of the answer
  std::unique_ptr<AnswerSource> source_;
  HttpAnswer head_;  // of source_'s answer
};

}  // namespace epic::coordinator
