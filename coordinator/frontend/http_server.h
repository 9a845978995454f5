// HttpServer: the OpenAI-compatible HTTP interface, asynchronous on a few threads.
//
//   HttpServer server(env.threads, {.host = "127.0.0.1", .port = 8000}, context);
//   ASSIGN_OR_RETURN(int port, server.Start());
//   …
//   server.Drain();                                  // SIGTERM
//   while (server.active_requests() > 0) { wait }
//   server.Stop();
//
// An open stream costs a socket and a few KB, no thread. Tokens are read from the journal when the
// socket can take them, so a slow client holds nothing but its place in the journal; the requests
// of a client that is gone are cancelled.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "base/env.h"
#include "coordinator/frontend/context.h"
#include "coordinator/frontend/http_options.h"

namespace epic::coordinator {

class HttpServer {
 public:
  // `threads` and `context` outlive this.
  HttpServer(Threads& threads, HttpOptions options, const FrontendContext& context);
  // Stops.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // Binds, listens and serves; returns the port. Once. FailedPrecondition or InvalidArgument,
  // naming host and port, if they cannot be had.
  absl::StatusOr<int> Start();
  // From now on each connection is closed after its answer. New ones still get their answers (503
  // for generation, once Inference refuses). Any thread.
  void Drain();
  // Requests that have not been answered whole. Any thread.
  int active_requests() const;
  // Closes everything at once and joins the threads; open streams drop their requests.
  void Stop();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace epic::coordinator
