// The flags of epic-coordinator.
#pragma once

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "coordinator/api_keys.h"

namespace epic::coordinator {

struct CoordinatorOptions {
  std::string model;  // folder of the checkpoint
  std::string host = "127.0.0.1";
  int port = 8000;
  int grpc_port = 50051;
  std::string control = "127.0.0.1:50061";    // workers dial it
  std::string operators = "127.0.0.1:50062";  // epic.v1.Cluster
  int expect_ranks = 0;
  int expert_replicas = 1;
  std::string join_token_file;
  bool insecure = false;
  double drain_move_after_s = 10;
  std::string event_log;  // file
  std::string state_dir;  // empty: this life keeps nothing for the next
  std::vector<std::string> served_model_names;
  int max_queued_requests = 4096;
  std::vector<std::string> api_keys;       // of the command line
  std::string api_key_file;
  std::vector<std::string> cors_origins;   // of web pages that may ask; empty: loopback pages
  std::vector<std::string> allowed_hosts;  // names in Host that a loopback listener takes
  double shutdown_timeout_s = 30;
  double default_timeout_s = 1800;
  bool exit_with_parent = false;
  std::string log_level = "info";
};

// All flags of epic-coordinator, ready to be parsed.
void AddCoordinatorOptions(CLI::App& app, CoordinatorOptions& options);
// Those of them that `epic serve` passes on as they are.
void AddServingOptions(CLI::App& app, CoordinatorOptions& options);

// Puts the keys of all sources into options.api_keys: those of the flags and of this process's
// environment. Errors as ReadApiKeys.
absl::Status ResolveApiKeys(CoordinatorOptions& options);

}  // namespace epic::coordinator
