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

  // Called for each new generation: takes the link, and returns what happens on it, or why the
  // worker is not taken; it is told so, and does not try again.
  using OnWorker = std::function<absl::StatusOr<ControlLinkHandlers>(
      const v1::ControlHello& hello, std::unique_ptr<ControlLink> link)>;

  struct Options {
    // Told to workers; one of another build or protocol version is refused with both named.
    uint64_t term = 0;
    std::string build_id;
    // Workers must prove that they have it. None: all are let in.
    std::optional<JoinToken> token;
  };
  ControlServer(Env env, Options options, OnWorker on_worker);
  // Close()s.
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  // To be registered with a grpc::ServerBuilder; lives as long as this, and both outlive the
  // server.
  grpc::Service* service();
  // Ends all streams, and every later one at once; links stay quiet. Before grpc::Server::Shutdown.
  void Close();

 private:
  struct Sessions;
  std::shared_ptr<Sessions> sessions_;
};

}  // namespace epic::cluster
