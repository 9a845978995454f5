// The coordinator's end of the control streams: the gRPC service that workers dial.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/env.h"
#include "cluster/control_link.h"
#include "cluster/join_token.h"

namespace grpc {
class Service;
}

namespace epic::cluster {

// Loop thread only, but for service(). One link for each generation that dials; it lasts over
// redials that come within kRedialTime, then its on_down is called and the generation is refused.
class ControlServer {
 public:
  static constexpr absl::Duration kRedialTime = absl::Milliseconds(300);

  // Called for each new generation. It takes the link and returns the handlers of what happens on
  // the link, or the reason why the worker is not taken. The worker is told the reason and does not
  // try again.
  using OnWorker = std::function<absl::StatusOr<ControlLinkHandlers>(
      const v1::ControlHello& hello, std::unique_ptr<ControlLink> link)>;

  struct Options {
    // Workers are told both. A worker of another build or protocol version is refused, and the
    // refusal names both builds and versions.
    uint64_t term = 0;
    std::string build_id;
    // Workers must prove that they have the token. Without a token all workers are let in.
    std::optional<JoinToken> token;
  };
  ControlServer(Env env, Options options, OnWorker on_worker);
  // Close()s.
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  // The service, which must be registered with a grpc::ServerBuilder. It lives as long as this
  // object, and both must outlive the gRPC server.
  grpc::Service* service();
  // Ends all streams, and every later one at once; links stay quiet. Before grpc::Server::Shutdown.
  void Close();

 private:
  struct Sessions;
  std::shared_ptr<Sessions> sessions_;
};

}  // namespace epic::cluster
