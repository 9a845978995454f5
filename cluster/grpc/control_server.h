// The coordinator's end of the control streams: the gRPC service that workers dial.
#pragma once

#include <functional>
#include <memory>

#include "base/env.h"
#include "cluster/control_link.h"

namespace grpc {
class Service;
}

namespace epic::cluster {

// Loop thread only, but for service(). One link for each generation that dials; it lasts over
// redials that come within kRedialTime, then its on_down is called and the generation is refused.
class ControlServer {
 public:
  static constexpr absl::Duration kRedialTime = absl::Milliseconds(1000);

  // Called for each new generation: takes the link, and returns what happens on it.
  using OnWorker = std::function<ControlLinkHandlers(const v1::ControlHello& hello,
                                                     std::unique_ptr<ControlLink> link)>;

  // `term` and `build_id` are told to workers; one of another build or protocol version is refused
  // with both named.
  ControlServer(Env env, uint64_t term, std::string build_id, OnWorker on_worker);
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
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace epic::cluster
