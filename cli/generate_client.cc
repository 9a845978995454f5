#include "cli/generate_client.h"

#include <grpcpp/grpcpp.h>

namespace epic::cli {

void AddGenerateOptions(CLI::App& command, GenerateOptions& options) {
  command.add_option("--server", options.server, "The gRPC address of the coordinator.")
      ->capture_default_str();
  command.add_option("--model", options.model,
                     "The name of the model. By default, it is the served one.");
  command.add_option("--temperature", options.temperature,
                     "The sampling temperature; 0 takes the likeliest token.");
  command.add_option("--top-p", options.top_p,
                     "Keep the likeliest tokens up to this probability.");
  command.add_option("--seed", options.seed,
                     "The seed of sampling: the same one gives the same answer.");
  command.add_option("--max-tokens", options.max_tokens,
                     "Generate at most this many tokens.");
}

v1::GenerateRequest NewRequest(const GenerateOptions& options) {
  v1::GenerateRequest request;
  // An option that was not given stays unset in the request, so that the model's own default holds
  // and not one of this program.
  request.set_model(options.model);
  if (options.temperature) request.mutable_sampling()->set_temperature(*options.temperature);
  if (options.top_p) request.mutable_sampling()->set_top_p(*options.top_p);
  if (options.seed) request.mutable_sampling()->set_seed(*options.seed);
  if (options.max_tokens) request.set_max_tokens(*options.max_tokens);
  return request;
}

GenerateClient::GenerateClient(const std::string& server)
    : stub_(v1::Inference::NewStub(
          grpc::CreateChannel(server, grpc::InsecureChannelCredentials()))) {}

absl::Status GenerateClient::Generate(
    const v1::GenerateRequest& request,
    const std::function<void(const v1::GenerateResponse&)>& on_response) {
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader =
      stub_->Generate(&context, request);
  v1::GenerateResponse response;
  // The call has no deadline of its own: an answer may take minutes, and the coordinator ends each
  // request by its own timeout (protocol.md 2.7).
  while (reader->Read(&response)) on_response(response);
  const grpc::Status status = reader->Finish();
  // The numbers of gRPC's codes and of Abseil's are the same.
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace epic::cli
