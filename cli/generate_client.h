// What `epic chat` and `epic complete` share: a gRPC client of epic.v1.Inference and its options.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "proto/epic/v1/inference.grpc.pb.h"

namespace epic::cli {

struct GenerateOptions {
  std::string server = "127.0.0.1:50051";
  std::string model;  // empty: the served one
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<uint64_t> seed;
  std::optional<int> max_tokens;
};

// Adds --server, --model, --temperature, --top-p, --seed and --max-tokens to `command`.
void AddGenerateOptions(CLI::App& command, GenerateOptions& options);

// Fills a request with the options that were given.
v1::GenerateRequest NewRequest(const GenerateOptions& options);

class GenerateClient {
 public:
  explicit GenerateClient(const std::string& server);

  // Runs `request` and calls `on_response` for each response as it arrives.
  absl::Status Generate(const v1::GenerateRequest& request,
                        const std::function<void(const v1::GenerateResponse&)>& on_response);

 private:
  std::unique_ptr<v1::Inference::Stub> stub_;
};

}  // namespace epic::cli
