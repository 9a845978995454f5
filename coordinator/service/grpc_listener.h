// GrpcListener: one address on which gRPC services are served.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace grpc {
class Server;
class Service;
}  // namespace grpc

namespace epic::coordinator {

// Whether only this machine reaches the address.
bool IsLoopback(const std::string& address);

class GrpcListener {
 public:
  struct Options {
    std::string address;  // host:port or unix:/path
    bool client_api =
        false;  // with grpc.health.v1, and reflection where only this machine reaches it
  };
  // FailedPrecondition, naming the address, if it cannot be had. The services outlive it.
  static absl::StatusOr<std::unique_ptr<GrpcListener>> Start(
      const Options& options, const std::vector<grpc::Service*>& services);
  ~GrpcListener();

  // What grpc.health.v1 answers.
  void SetServing(bool serving);
  // Ends the calls that are still open.
  void Stop();

 private:
  explicit GrpcListener(std::unique_ptr<grpc::Server> server);
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace epic::coordinator
