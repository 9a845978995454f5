// The flags of epic-worker.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "CLI/CLI.hpp"

namespace epic::worker {

struct WorkerOptions {
  std::string model;        // folder of the checkpoint
  std::string coordinator;  // host:port or unix:/path
  std::string join_token_file;
  int threads = 0;  // 0: all cores that this process may use
  std::string numerics = "auto";
  int max_model_len = 0;  // 0: what the model says
  int max_num_seqs = 256;
  int max_num_batched_tokens = 2048;
  std::optional<int64_t> kv_cache_bytes;
  double memory_utilization = 0.9;
  bool dry_run = false;
  bool exit_with_parent = false;
  std::string log_level = "info";
};

void AddWorkerOptions(CLI::App& app, WorkerOptions& options);

}  // namespace epic::worker
