#include "worker/options.h"

#include <algorithm>

#include "base/flags.h"

namespace epic::worker {
namespace {

// Help texts are whole sentences; tests/e2e/test_flags.py holds them to that.
void AddWorldOptions(CLI::App& app, WorkerOptions& options) {
  app.add_option("--roles", options.roles,
                 "What this rank does: attention (it owns sequences), experts (it holds weights of "
                 "experts), or both.")
      ->delimiter(',')
      ->check(CLI::IsMember({"attention", "experts"}))
      ->capture_default_str();
  app.add_option("--expert-ranks", options.expert_ranks,
                 "The number of expert ranks that the world starts with. It decides how many "
                 "experts this rank has room for.")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--expert-slots", options.expert_slots,
                 "The number of experts, over all layers, that this rank has room for. 0 takes "
                 "what --expert-ranks and --tolerate-losses ask for.")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--local-ranks", options.local_ranks,
                 "The number of ranks that share this machine's cores and memory evenly.")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--exchange", options.exchange,
                 "How ranks exchange rows: by messages, or in lock-step with both roles each. mpi "
                 "joins the ranks that mpirun started; nccl joins --expert-ranks of them, each "
                 "with a card.")
      ->check(CLI::IsMember({"messages", "mpi", "nccl"}))
      ->capture_default_str();
  app.add_option("--exchange-address", options.exchange_address,
                 "The address where other ranks reach this one over tcp, as host:port. Port 0 "
                 "takes any.")
      ->capture_default_str();
  app.add_option("--advertised-host", options.advertised_host,
                 "The host that other ranks are told. It is needed where --exchange-address is a "
                 "wildcard.");
  app.add_option("--run-dir", options.run_dir,
                 "The folder of the socket through which ranks of this machine share memory.");
  // An empty value is most often a variable of a shell that is not set. Without the check the rank
  // would speak without the secret.
  app.add_option("--join-token-file", options.join_token_file,
                 "The file with the secret that the coordinator and its workers share.")
      ->check([](const std::string& path) {
        return std::string(path.empty() ? "the value is empty; leave the flag out instead" : "");
      });
}

void AddLimitOptions(CLI::App& app, WorkerOptions& options) {
  app.add_option("--max-model-len", options.max_model_len,
                 "The largest number of tokens of prompt and answer together. 0 takes what the "
                 "model says.")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  app.add_option("--max-num-seqs", options.max_num_seqs,
                 "The largest number of sequences computed at a time.")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--max-num-batched-tokens", options.max_num_batched_tokens,
                 "The largest number of rows of a step, decode rows and prompt chunks together.")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--kv-cache-memory", options.kv_cache_bytes,
                 "The memory for KV pages of each attention rank (512MiB, 8GiB). By default, it is "
                 "what --memory-utilization leaves.")
      // Memory comes in powers of two: 8GB means the same as 8GiB.
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  // vLLM's users know the second name.
  app.add_option("--memory-utilization,--gpu-memory-utilization", options.memory_utilization,
                 "The share of the available memory that weights, buffers and KV pages may take.")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
}

}  // namespace

bool WorkerOptions::attention() const { return std::ranges::count(roles, "attention") > 0; }
bool WorkerOptions::experts() const { return std::ranges::count(roles, "experts") > 0; }

void AddCpuOptions(CLI::App& app, const CpuFlagValues& values) {
  app.add_option("--threads", *values.threads,
                 "The number of compute threads. 0 takes the cores that this process may use, "
                 "shared evenly between the ranks of a machine.")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  const auto word = [&](const char* name, std::string* value, std::vector<std::string> words,
                        const char* help) {
    app.add_option(name, *value, help)
        ->check(CLI::IsMember(std::move(words)))
        ->capture_default_str();
  };
  word("--pin-threads", values.pin_threads, {"on", "off"},
       "Whether each compute thread stays on one of the cores that this process may use, if they "
       "are enough and --local-ranks is 1.");
  word("--numerics", values.numerics, {"auto", "fma", "avx512-bf16", "amx-bf16"},
       "The family of instructions, which fixes every bit of a result.");
  word("--quantization", values.quantization, {"none", "int8", "int4"},
       "How weights are quantised as they are loaded: to INT8 (per output, with INT8 activations) "
       "or INT4 (groups of 32).");
  word("--kv-cache-dtype", values.kv_cache_dtype, {"auto", "bf16", "fp8"},
       "How KV pages hold latents: as bf16, or as fp8 (E4M3, scales per 128). auto means bf16.");
  word("--prompt-attention", values.prompt_attention, {"absorbed", "expanded"},
       "How rows of prompts attend: absorbed like all others, or expanded, which is faster for "
       "prompts computed in long chunks and slower for short ones.");
}

void AddComputeOptions(CLI::App& app, WorkerOptions& options) {
  // Not checked against a list of words: ParseCard reads the card's number and names the flag.
  app.add_option("--device", options.device,
                 "What this rank computes on: cpu; cuda, which is the first NVIDIA card and shared "
                 "by --local-ranks; or cuda:N, which is card N and this rank's own.")
      ->capture_default_str();
  AddCpuOptions(app, {.threads = &options.threads,
                      .pin_threads = &options.pin_threads,
                      .numerics = &options.numerics,
                      .quantization = &options.quantization,
                      .kv_cache_dtype = &options.kv_cache_dtype,
                      .prompt_attention = &options.prompt_attention});
  app.add_flag("--enforce-eager", options.enforce_eager,
               "Launch every kernel of a card by itself, never the kernels of a step as a graph.");
  AddLimitOptions(app, options);
  app.add_option("--tolerate-losses", options.tolerate_losses,
                 "The number of lost expert ranks whose experts the others have room for.")
      ->check(CLI::Range(0, 4095))
      ->capture_default_str();
  app.add_option("--transport", options.transport,
                 "How rows travel between ranks. auto takes shm on one machine, else tcp.")
      ->check(CLI::IsMember({"auto", "shm", "tcp"}))
      ->capture_default_str();
}

void AddWorkerOptions(CLI::App& app, WorkerOptions& options) {
  app.add_option("--model", options.model, "The folder of the Hugging Face checkpoint.")
      ->required();
  // Not required here: --dry-run needs no coordinator. RunWorker names the flag where it is
  // missing.
  app.add_option("--coordinator", options.coordinator,
                 "The address where the coordinator listens for workers: host:port or unix:/path.");
  AddWorldOptions(app, options);
  AddComputeOptions(app, options);
  app.add_flag("--dry-run", options.dry_run, "Print the memory plan and exit.");
  app.add_flag("--exit-with-parent", options.exit_with_parent,
               "Exit when the process that started this one dies, and leave Ctrl-C to it.");
  app.add_option("--log-level", options.log_level, "The lowest level that is logged.")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
  // Last: a flag that is added later would have no variable.
  FinishFlags(app);
}

}  // namespace epic::worker
