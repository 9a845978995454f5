// The flags of epic-worker.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"

namespace epic::worker {

struct WorkerOptions {
  std::string model;        // folder of the checkpoint
  std::string coordinator;  // host:port or unix:/path
  std::vector<std::string> roles = {"attention", "experts"};
  int expert_slots = 0;     // 0: what expert_ranks and tolerate_losses ask for
  int expert_ranks = 1;     // that the world starts with
  int tolerate_losses = 1;  // of expert ranks, where there are two or more
  int local_ranks = 1;      // that share this machine
  std::string exchange = "messages";
  std::string transport = "auto";
  std::string exchange_address = "127.0.0.1:0";  // host:port; port 0: any
  std::string advertised_host;                   // told to other ranks; empty: the one listened on
  std::string run_dir;  // of the unix socket for shared memory; empty: none
  std::string join_token_file;
  std::string device = "cpu";  // cpu, cuda or cuda:N
  int threads = 0;             // 0: this rank's share of the cores that this process may use
  std::string pin_threads = "off";
  std::string numerics = "auto";
  std::string quantization = "none";
  std::string kv_cache_dtype = "auto";  // auto: bf16
  std::string prompt_attention = "absorbed";
  bool enforce_eager = false;
  int max_model_len = 0;  // 0: what the model says
  int max_num_seqs = 256;
  int max_num_batched_tokens = 2048;
  std::optional<int64_t> kv_cache_bytes;
  double memory_utilization = 0.9;
  bool dry_run = false;
  bool exit_with_parent = false;
  std::string log_level = "info";

  bool attention() const;
  bool experts() const;
};

// All flags of epic-worker, ready to be parsed.
void AddWorkerOptions(CLI::App& app, WorkerOptions& options);
// The flags of epic-worker that `epic serve` has too and gives to each of its workers.
void AddComputeOptions(CLI::App& app, WorkerOptions& options);

// The places for the values of the flags that `epic bench` has too.
struct CpuFlagValues {
  int* threads;
  std::string *pin_threads, *numerics, *quantization, *kv_cache_dtype, *prompt_attention;
};
// The flags that say how a CPU computes. All values are set.
void AddCpuOptions(CLI::App& app, const CpuFlagValues& values);

}  // namespace epic::worker
