#include "worker/device.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "base/log.h"
#include "base/status.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/backend.h"
#include "kernels/threads/thread_pool.h"
#include "worker/engine/memory_plan.h"

namespace epic::worker {
namespace {

// The ranks of a machine divide its cores: with all cores each, their threads would take turns. 0
// leaves the number to the backend.
int Threads(const WorkerOptions& options) {
  if (options.threads > 0 || options.local_ranks == 1) return options.threads;
  return std::max(1, kernels::ThreadPool::AvailableCores() / options.local_ranks);
}

kernels::CpuOptions CpuOptionsOf(const WorkerOptions& options) {
  kernels::CpuOptions cpu = kernels::ParseCpuFlags({.numerics = options.numerics,
                                                    .quantization = options.quantization,
                                                    .kv_cache_dtype = options.kv_cache_dtype,
                                                    .prompt_attention = options.prompt_attention,
                                                    .pin_threads = options.pin_threads,
                                                    .threads = Threads(options)});
  // The backend must know how many ranks share the cores: threads that spin would hold up another
  // rank's.
  cpu.ranks = options.local_ranks;
  return cpu;
}

absl::StatusOr<Device> OpenCpu(const WorkerOptions& options) {
  kernels::CpuBackendResult made = kernels::MakeCpuBackend(CpuOptionsOf(options));
  if (made.backend == nullptr) return absl::FailedPreconditionError("--numerics: " + made.error);
  if (!made.note.empty()) LOG_INFO("{}", made.note);
  ASSIGN_OR_RETURN(const int64_t available_bytes, AvailableMemoryBytes());
  // Ranks that start together all see the same memory free, so each plans with its share.
  return Device{std::move(made.backend), available_bytes / options.local_ranks};
}

kernels::CudaModelShape CudaShapeOf(const model::ModelConfig& config) {
  kernels::CudaModelShape shape = {.hidden = config.hidden_size,
                                   .q_rank = config.q_lora_rank,
                                   .kv_rank = config.kv_lora_rank,
                                   .nope_dim = config.qk_nope_head_dim,
                                   .rope_dim = config.qk_rope_head_dim,
                                   .v_dim = config.v_head_dim,
                                   .heads = config.head_count,
                                   .vocab = config.vocab_size};
  // Only sizes that some layer has: any other must not be a reason to refuse the model.
  if (config.sparse_layer_count() < config.layer_count) {
    shape.intermediates.push_back(config.intermediate_size);
  }
  if (config.expert_count > 0) {
    shape.intermediates.push_back(config.expert_intermediate_size);
    shape.intermediates.push_back(config.shared_intermediate_size());
    shape.gate = {.experts = config.expert_count,
                  .top_k = config.experts_per_token,
                  .groups = config.group_count};
  }
  return shape;
}

// A flag that the card cannot honour is refused and never ignored: the answers would have other
// bits than the flag asks for.
absl::Status CheckCudaFlags(const WorkerOptions& options, const model::ModelConfig& config) {
  const std::string given = absl::StrCat("--device ", options.device);
  if (options.quantization != "none") {
    return absl::InvalidArgumentError(
        absl::StrCat(given, " takes weights as the checkpoint has them: --quantization is ",
                     options.quantization, ", it must be none"));
  }
  if (options.numerics != "auto") {
    return absl::InvalidArgumentError(
        absl::StrCat(given, " has a numeric family of its own: --numerics is ", options.numerics,
                     ", it must be auto"));
  }
  if (options.prompt_attention != "absorbed") {
    return absl::InvalidArgumentError(
        absl::StrCat(given, " attends absorbed: --prompt-attention is ", options.prompt_attention,
                     ", it must be absorbed"));
  }
  if (config.int4_groups || config.int8_rows) {
    return absl::UnimplementedError(
        absl::StrCat(given,
                     ": config.json's quantization_config is of integers; the CUDA "
                     "backend serves FP8, BF16, F16 and F32"));
  }
  const std::string problem = kernels::CudaShapeProblem(CudaShapeOf(config));
  if (problem.empty()) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(given, ": config.json: ", problem));
}

absl::StatusOr<Device> OpenCard(const WorkerOptions& options, const model::ModelConfig& config,
                                int card) {
  RETURN_IF_ERROR(CheckCudaFlags(options, config));
  kernels::CudaBackendResult made = kernels::MakeCudaBackend(
      {.ordinal = card,
       .kv_type = options.kv_cache_dtype == "fp8" ? kernels::KvType::kFP8 : kernels::KvType::kBF16,
       .graphs = !options.enforce_eager});
  // Also if there is no backend: the notes then say which tiles failed.
  for (const std::string& note : made.notes) LOG_WARNING("{}", note);
  if (made.backend == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("--device ", options.device, ": ", made.error));
  }
  // Ranks that name no card share the first one.
  const int ranks = options.device == "cuda" ? options.local_ranks : 1;
  return Device{std::move(made.backend), made.free_bytes / ranks};
}

}  // namespace

absl::StatusOr<std::optional<int>> ParseCard(absl::string_view device) {
  if (device == "cpu") return std::nullopt;
  int card = 0;
  if (device == "cuda") return card;
  if (absl::ConsumePrefix(&device, "cuda:") && absl::SimpleAtoi(device, &card) && card >= 0) {
    return card;
  }
  return absl::InvalidArgumentError("--device must be cpu, cuda or cuda:N, N the card's number");
}

int64_t ScratchBytes(const WorkerOptions& options, const model::ModelConfig& config, int rows,
                     int logit_rows) {
  if (options.device == "cpu") return 0;
  return kernels::CudaScratchBytes(CudaShapeOf(config), rows, logit_rows);
}

kernels::PromptAttention PromptAttentionOf(const WorkerOptions& options) {
  return CpuOptionsOf(options).prompt_attention;
}

kernels::Quantization QuantizationOf(const WorkerOptions& options) {
  // The same parser for a card too: the words have one home, kernels/cpu/cpu_backend.h.
  return CpuOptionsOf(options).quantization;
}

absl::StatusOr<Device> OpenDevice(const WorkerOptions& options, const model::ModelConfig& config) {
  ASSIGN_OR_RETURN(const std::optional<int> card, ParseCard(options.device));
  ASSIGN_OR_RETURN(Device device, card ? OpenCard(options, config, *card) : OpenCpu(options));
  // Before anything is loaded: a world has one profile (rule 1.6), and a rank of another is
  // refused.
  LOG_INFO("{}, numeric profile {}", device.backend->description(), device.backend->profile());
  return device;
}

}  // namespace epic::worker
