#include "worker/options.h"

namespace epic::worker {

void AddWorkerOptions(CLI::App& app, WorkerOptions& options) {
  app.add_option("--model", options.model, "Folder of the Hugging Face checkpoint")->required();
  app.add_option("--coordinator", options.coordinator,
                 "Where the coordinator listens for workers: host:port or unix:/path");
  app.add_option("--join-token-file", options.join_token_file,
                 "File with the secret that the coordinator has too");
  app.add_option("--threads", options.threads, "Compute threads; 0: all cores")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  app.add_option("--numerics", options.numerics, "Instruction family, which fixes every bit")
      ->check(CLI::IsMember({"auto", "fma", "amx-bf16"}))
      ->capture_default_str();
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
