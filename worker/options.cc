#include "worker/options.h"

#include <algorithm>

namespace epic::worker {
namespace {

void AddWorldOptions(CLI::App& app, WorkerOptions& options) {
  app.add_option("--roles", options.roles,
                 "attention (owns sequences), experts (owns weights), or both")
      ->delimiter(',')
      ->check(CLI::IsMember({"attention", "experts"}))
      ->capture_default_str();
  app.add_option("--expert-ranks", options.expert_ranks,
                 "Expert ranks that the world starts with: sets how many experts this rank has "
                 "room for")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--tolerate-losses", options.tolerate_losses,
                 "Keep room for the experts of so many lost expert ranks")
      ->check(CLI::Range(0, 4095))
      ->capture_default_str();
  app.add_option("--expert-slots", options.expert_slots,
                 "Experts, over all layers, that this rank has room for; 0: by --expert-ranks and "
                 "--tolerate-losses")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--local-ranks", options.local_ranks,
                 "Ranks that share this machine's cores and memory evenly")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option(
         "--exchange", options.exchange,
         "How ranks exchange rows: messages; or in lock-step, each with both roles: mpi (the ranks "
         "that mpirun started) or nccl (--expert-ranks of them, each with a card)")
      ->check(CLI::IsMember({"messages", "mpi", "nccl"}))
      ->capture_default_str();
  app.add_option("--transport", options.transport,
                 "How rows travel between ranks; auto: shm on one machine, else tcp")
      ->check(CLI::IsMember({"auto", "shm", "tcp"}))
      ->capture_default_str();
  app.add_option("--exchange-address", options.exchange_address,
                 "host:port where other ranks reach this one over tcp; port 0: any")
      ->capture_default_str();
  app.add_option("--advertised-host", options.advertised_host,
                 "Host told to other ranks; needed where --exchange-address is a wildcard");
  app.add_option("--run-dir", options.run_dir,
                 "Folder of the socket through which ranks of this machine share memory");
  app.add_option("--join-token-file", options.join_token_file,
                 "File with the secret that the coordinator and its workers share")
      ->check([](const std::string& path) {
        return std::string(path.empty() ? "the value is empty; leave the flag out instead" : "");
      });
}

}  // namespace

bool WorkerOptions::attention() const { return std::ranges::count(roles, "attention") > 0; }
bool WorkerOptions::experts() const { return std::ranges::count(roles, "experts") > 0; }

void AddWorkerOptions(CLI::App& app, WorkerOptions& options) {
  app.add_option("--model", options.model, "Folder of the Hugging Face checkpoint")->required();
  app.add_option("--coordinator", options.coordinator,
                 "Where the coordinator listens for workers: host:port or unix:/path");
  AddWorldOptions(app, options);
  app.add_option("--device", options.device,
                 "cpu; cuda: the first NVIDIA card, shared by --local-ranks; cuda:N: card N, this "
                 "rank's own")
      ->capture_default_str();
  app.add_option("--threads", options.threads,
                 "Compute threads; 0: the cores of this machine, shared with --local-ranks")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  app.add_option("--pin-threads", options.pin_threads,
                 "on: keep each compute thread on one of the cores that this process may use, if "
                 "they are enough and --local-ranks is 1")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  app.add_option("--numerics", options.numerics, "Instruction family, which fixes every bit")
      ->check(CLI::IsMember({"auto", "fma", "avx512-bf16", "amx-bf16"}))
      ->capture_default_str();
  app.add_option("--quantization", options.quantization,
                 "Quantise weights as they are loaded: to INT8 (per output, with INT8 activations) "
                 "or INT4 (groups of 32)")
      ->check(CLI::IsMember({"none", "int8", "int4"}))
      ->capture_default_str();
  app.add_option("--kv-cache-dtype", options.kv_cache_dtype,
                 "How KV pages hold latents: bf16, or fp8 (E4M3, scales per 128); auto: bf16")
      ->check(CLI::IsMember({"auto", "bf16", "fp8"}))
      ->capture_default_str();
  app.add_option("--prompt-attention", options.prompt_attention,
                 "How rows of prompts attend: absorbed like all others, or expanded: faster for "
                 "prompts computed in long chunks, slower for short ones")
      ->check(CLI::IsMember({"absorbed", "expanded"}))
      ->capture_default_str();
  app.add_flag("--enforce-eager", options.enforce_eager,
               "On a card: launch every kernel by itself, never a step's as CUDA graphs");
  app.add_option("--max-model-len", options.max_model_len,
                 "Tokens of prompt and answer together; 0: what the model says")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  app.add_option("--max-num-seqs", options.max_num_seqs, "Sequences computed at a time")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--max-num-batched-tokens", options.max_num_batched_tokens,
                 "Rows of a step: decode rows and prompt chunks together")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--kv-cache-memory", options.kv_cache_bytes,
                 "Bytes of KV pages (512MiB, 8GiB); default: what --memory-utilization leaves")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  app.add_option("--memory-utilization,--gpu-memory-utilization", options.memory_utilization,
                 "Share of the available memory that weights, buffers and KV pages may take")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  app.add_flag("--dry-run", options.dry_run, "Print the memory plan and exit");
  app.add_flag("--exit-with-parent", options.exit_with_parent,
               "Exit when the process that started this one dies; leave Ctrl-C to it");
  app.add_option("--log-level", options.log_level, "debug, info, warning or error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
}

}  // namespace epic::worker
