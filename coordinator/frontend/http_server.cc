#include "coordinator/frontend/http_server.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "coordinator/frontend/http_connection.h"

namespace epic::coordinator {

// Accepts connections.
struct HttpServer::State : std::enable_shared_from_this<HttpServer::State> {
  State(Threads& threads_in, HttpOptions options, const FrontendContext& context)
      : threads(threads_in),
        shared(std::make_shared<HttpShared>(std::move(options), context)),
        acceptor(net::make_strand(shared->io)),
        retry(acceptor.get_executor()) {}

  absl::StatusOr<int> Listen();
  void Accept();
  void OnAccepted(error_code error, tcp::socket socket);

  Threads& threads;
  const std::shared_ptr<HttpShared> shared;
  tcp::acceptor acceptor;
  net::steady_timer retry;
  std::vector<std::unique_ptr<Threads::Handle>> handles;
};

absl::StatusOr<int> HttpServer::State::Listen() {
  const HttpOptions& options = shared->serving.options;
  const std::string where = absl::StrCat("HTTP on ", options.host, ":", options.port);
  error_code error;
  const auto endpoints =
      tcp::resolver(shared->io)
          .resolve(options.host, std::to_string(options.port),
                   tcp::resolver::passive | tcp::resolver::numeric_service, error);
  if (error || endpoints.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot serve ", where, ": unknown host: ", error.message()));
  }
  // A name with several addresses is served at the first one alone.
  const tcp::endpoint endpoint = *endpoints.begin();
  acceptor.open(endpoint.protocol(), error);
  // A coordinator that starts again must get its port although connections of its last life linger
  // (TIME_WAIT).
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(net::socket_base::max_listen_connections, error);
  if (error) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot serve ", where, ": ", error.message()));
  }
  return acceptor.local_endpoint().port();
}

void HttpServer::State::Accept() {
  // Each socket gets a strand of its own, so a session needs no lock. The handler holds State
  // weakly: it lies in the queue that State owns, and a circle of owners would never end.
  acceptor.async_accept(net::make_strand(shared->io),
                        [weak = weak_from_this()](error_code error, tcp::socket socket) {
                          const std::shared_ptr<State> self = weak.lock();
                          if (self != nullptr && self->acceptor.is_open())
                            self->OnAccepted(error, std::move(socket));
                        });
}

void HttpServer::State::OnAccepted(error_code error, tcp::socket socket) {
  // Mostly the process is out of descriptors. The client waits in the backlog, and the pause, which
  // is chosen, keeps this from spinning until another connection has closed.
  if (error) {
    retry.expires_after(std::chrono::milliseconds(50));
    retry.async_wait([weak = weak_from_this()](error_code) {
      const std::shared_ptr<State> self = weak.lock();
      if (self != nullptr && self->acceptor.is_open()) self->Accept();
    });
    return;
  }
  shared->Accept(std::move(socket));
  Accept();
}

HttpServer::HttpServer(Threads& threads, HttpOptions options, const FrontendContext& context)
    : state_(std::make_shared<State>(threads, std::move(options), context)) {}

HttpServer::~HttpServer() { Stop(); }

absl::StatusOr<int> HttpServer::Start() {
  CHECK(state_->handles.empty()) << "the HTTP server was started before";
  absl::StatusOr<int> port = state_->Listen();
  if (!port.ok()) return port;
  state_->Accept();
  for (int i = 0; i < state_->shared->serving.options.thread_count; ++i) {
    state_->handles.push_back(state_->threads.Start(
        absl::StrCat("http ", i), [shared = state_->shared] { shared->io.run(); }));
  }
  return port;
}

void HttpServer::Drain() {
  // The flag is set before the connections are told: one that becomes idle in between looks at the
  // flag.
  state_->shared->serving.draining = true;
  state_->shared->ForEach(&HttpSession::CloseIfIdle);
}

int HttpServer::active_requests() const { return state_->shared->serving.active_requests; }

void HttpServer::Stop() {
  if (state_->shared->io.stopped()) return;
  state_->shared->io.stop();
  state_->handles.clear();
  // No thread runs any more, so everything may be touched from here.
  error_code ignored;
  state_->acceptor.close(ignored);
  state_->retry.cancel();
  state_->shared->CloseAll();
  // The handlers of what was closed hold their connections, and those hold the queue.
  state_->shared->io.restart();
  state_->shared->io.poll();
  state_->shared->io.stop();
}

}  // namespace epic::coordinator
