#include "coordinator/service/grpc_listener.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_builder_plugin.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace epic::coordinator {

namespace {

// Linked in, reflection would be on every server.
class WithoutReflection : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    plugins->clear();
  }
};

}  // namespace

bool IsLoopback(const std::string& address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]:") || absl::StartsWith(address, "unix:");
}

absl::StatusOr<std::unique_ptr<GrpcListener>> GrpcListener::Start(
    const Options& options, const std::vector<grpc::Service*>& services) {
  // A setting of the whole process: a server takes what is set when it is built.
  grpc::EnableDefaultHealthCheckService(options.client_api);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  if (!options.client_api || !IsLoopback(options.address)) {
    builder.SetOption(std::make_unique<WithoutReflection>());
  }
  int port = -1;
  builder.AddListeningPort(options.address, grpc::InsecureServerCredentials(), &port);
  // A port that another process listens on is an error here, not shared with it in turn.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // A peer whose machine is gone sends nothing at all: it is noticed within 20 s.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Workers are trusted, and one message of theirs tells of all experts of a large model: it may
  // be larger than gRPC's 4 MiB.
  if (!options.client_api) builder.SetMaxReceiveMessageSize(-1);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot listen on ", options.address, " for gRPC: is it in use?"));
  }
  return std::unique_ptr<GrpcListener>(new GrpcListener(std::move(server)));
}

GrpcListener::GrpcListener(std::unique_ptr<grpc::Server> server) : server_(std::move(server)) {}

GrpcListener::~GrpcListener() { Stop(); }

void GrpcListener::SetServing(bool serving) {
  if (auto* health = server_->GetHealthCheckService()) health->SetServingStatus(serving);
}

void GrpcListener::Stop() {
  if (server_ == nullptr) return;
  // Nothing is waited for: whoever stops has drained, or does not want to.
  server_->Shutdown(gpr_time_0(GPR_CLOCK_REALTIME));
  server_->Wait();
  server_.reset();
}

}  // namespace epic::coordinator
