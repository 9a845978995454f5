// HttpApi: the routes of the HTTP interface, without sockets: a request in, an answer out, at once
// or as a source that gives it by and by. http_server.h puts it on the wire.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/frontend/context.h"
#include "coordinator/frontend/json_fields.h"

namespace epic::coordinator {

struct HttpRequest {
  std::string method;
  std::string target;         // path and query, as sent
  std::string authorization;  // headers; empty: absent
  std::string request_id;
  std::string host;
  std::string origin;               // of the web page that asks
  std::string preflight_headers;    // Access-Control-Request-Headers
  bool preflight_private = false;   // Access-Control-Request-Private-Network
  std::string body;
};

struct HttpAnswer {
  int status = 200;
  std::string content_type = "application/json";  // empty: there is no body
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
};

// An answer that takes its time. One thread at a time. Destroying it before its end cancels what it
// waits for.
class AnswerSource {
 public:
  // A piece of the answer.
  struct Part {
    std::string bytes;                 // of an event stream: what can be sent now
    std::optional<HttpAnswer> answer;  // of others: the whole
    bool done = false;
  };
  virtual ~AnswerSource() = default;
  // `listener` is called when Pull may have something, from any thread, and once at once. It must
  // only hand over.
  virtual void SetListener(std::function<void()> listener) = 0;
  // An event stream (its head can go at once), or a whole answer.
  virtual bool streams() const = 0;
  // What an event stream sends while it waits: bytes that no client takes for an event.
  virtual std::string keep_alive() const { return "\n"; }
  // If nothing is in the part, the caller waits for the listener. After `done` nobody may call
  // this.
  virtual Part Pull() = 0;
};

// The answer, or where it will come from, with the headers that are known by now.
struct HttpReply {
  HttpAnswer answer;
  std::unique_ptr<AnswerSource> source;
};

// Immutable; any thread may call.
class HttpApi {
 public:
  explicit HttpApi(const FrontendContext& context) : context_(context) {}
  HttpReply Handle(const HttpRequest& request) const;
  // The answer to a request that could not be read whole. `request`: what is known of it.
  HttpAnswer Refuse(const HttpRequest& request, int status, const std::string& message) const;

 private:
  using Handler = absl::StatusOr<HttpReply> (HttpApi::*)(const HttpRequest&) const;
  struct Route {
    const char* method;
    const char* path;
    bool guarded;  // needs an API key, if there are any
    Handler handler;
  };
  static const Route kRoutes[];

  absl::StatusOr<HttpReply> Dispatch(const HttpRequest& request) const;
  HttpReply Preflight(const HttpRequest& request) const;
  // What a browser must see to let the page read the answer.
  void AddBrowserHeaders(const HttpRequest& request, HttpAnswer* answer) const;
  absl::StatusOr<HttpReply> Chat(const HttpRequest& request) const;
  absl::StatusOr<HttpReply> Complete(const HttpRequest& request) const;
  absl::StatusOr<HttpReply> Models(const HttpRequest& request) const;
  absl::StatusOr<HttpReply> Model(const std::string& name) const;
  absl::StatusOr<HttpReply> Health(const HttpRequest& request) const;
  absl::StatusOr<HttpReply> Ready(const HttpRequest& request) const;
  absl::StatusOr<HttpReply> Metrics(const HttpRequest& request) const;
  absl::StatusOr<HttpReply> Version(const HttpRequest& request) const;
  absl::StatusOr<HttpReply> Tokenize(const HttpRequest& request) const;
  absl::StatusOr<HttpReply> Detokenize(const HttpRequest& request) const;
  Json Card(const std::string& name) const;

  const FrontendContext& context_;
};

// The answer to a request that failed, also before it became an HttpRequest.
HttpAnswer ErrorAnswer(const absl::Status& status);

}  // namespace epic::coordinator
