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

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/env.h"
#include "coordinator/frontend/context.h"

namespace epic::coordinator {

struct HttpOptions {
  std::string host = "127.0.0.1";  // an address or a name
  int port = 8000;                 // 0: any free one
  int thread_count = 2;
  size_t body_bytes_max = 8 << 20;                      // 413 beyond
  size_t header_bytes_max = 32 << 10;                   // 431 beyond
  int connection_count_max = 8192;                      // 503 beyond
  absl::Duration request_timeout = absl::Seconds(60);   // for a begun request to arrive: 408
  absl::Duration idle_timeout = absl::Seconds(120);     // of a connection between requests
  absl::Duration write_timeout = absl::Minutes(5);      // of a client that takes nothing
  absl::Duration comment_interval = absl::Seconds(15);  // keeps waiting streams alive
};

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
