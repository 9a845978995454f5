// Prefill and decode speed of the engine alone (model/ on the CPU backend, no server), as JSON:
//   engine-bench MODEL [--threads N] [--family fma] [--quantization int8] [--prompt N] [--steps N]
//   [--batch N ...]
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/local_exchange.h"
#include "model/model.h"
#include "model/step.h"
#include "nlohmann/json.hpp"

namespace epic::perf {
namespace {

struct Options {
  std::string folder;
  std::string family = "auto";
  std::string quantization = "none";
  int threads = 0;
  int prompt_tokens = 512;
  int steps = 32;
  std::vector<int> batches = {1, 8};
};

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// What one token has to read at least: every weight but the embedding, of the experts its own.
double BytesPerToken(const model::ModelConfig& config, const model::Checkpoint& checkpoint) {
  constexpr std::string_view kLayers = "model.layers.";
  double bytes = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (name.starts_with("model.embed_tokens") && !config.tied_embeddings) continue;
    if (name.starts_with(kLayers)) {
      const std::string rest = name.substr(kLayers.size());
      int layer = 0;
      CHECK(absl::SimpleAtoi(rest.substr(0, rest.find('.')), &layer));
      if (layer >= config.layer_count) continue;
    }
    const bool expert = name.find(".mlp.experts.") != std::string::npos;
    bytes += static_cast<double>(tensor.bytes.size()) *
             (expert ? double(config.experts_per_token) / config.expert_count : 1);
  }
  return bytes;
}

// Sequences that grow side by side in one cache.
class Run {
 public:
  Run(const model::Model& model, kernels::Backend& backend, int sequences, int length_max,
      int rows_max)
      : model_(model),
        backend_(backend),
        lengths_(sequences, 0),
        pages_each_((length_max + kernels::kPageTokens - 1) / kernels::kPageTokens),
        exchange_(model, backend),
        buffers_(model.config(), backend, rows_max, sequences) {
    const int64_t bytes = int64_t{sequences} * pages_each_ * model.kv_layout().page_bytes();
    for (int layer = 0; layer < model.config().layer_count; ++layer) {
      slabs_.push_back(backend.Allocate(bytes));
      slab_pointers_.push_back(slabs_.back()->data());
    }
  }

  // `rows` more tokens of each of the first `sequences`; seconds.
  double Advance(int sequences, int rows) {
    kernels::StepPlan plan;
    for (int s = 0; s < sequences; ++s) {
      plan.sequences.push_back({.first_row = plan.rows(),
                                .row_count = rows,
                                .first_position = lengths_[s],
                                .first_page = static_cast<int32_t>(plan.pages.size())});
      for (int page = 0; page < pages_each_; ++page) plan.pages.push_back(s * pages_each_ + page);
      for (int row = 0; row < rows; ++row) AddRow(plan, s);
      plan.logit_rows.push_back(plan.rows() - 1);
    }
    const kernels::KvView kv{model_.kv_layout(), slab_pointers_,
                             static_cast<int>(lengths_.size()) * pages_each_};
    const auto start = std::chrono::steady_clock::now();
    model::Step step(model_, backend_, exchange_, kv, plan, buffers_);
    while (true) {
      const auto progress = step.Advance();
      CHECK_OK(progress.status());
      if (*progress == model::Step::Progress::kDone) break;
    }
    const double seconds = SecondsSince(start);
    for (const uint8_t fault : step.faults()) CHECK(fault == 0);
    return seconds;
  }

 private:
  void AddRow(kernels::StepPlan& plan, int sequence) {
    random_ = random_ * 1664525u + 1013904223u;  // tokens differ, so do the experts they choose
    plan.token_ids.push_back(static_cast<int32_t>((random_ >> 8) % model_.config().vocab_size));
    plan.positions.push_back(lengths_[sequence]++);
    plan.row_sequence.push_back(sequence);
  }

  const model::Model& model_;
  kernels::Backend& backend_;
  std::vector<int> lengths_;
  int pages_each_;
  model::LocalExchange exchange_;
  model::StepBuffers buffers_;
  std::vector<std::unique_ptr<kernels::Memory>> slabs_;
  std::vector<std::byte*> slab_pointers_;
  uint32_t random_ = 1;
};

nlohmann::json Measure(const model::Model& model, kernels::Backend& backend,
                       const Options& options) {
  nlohmann::json result;
  Run prompt(model, backend, 1, 2 * options.prompt_tokens, options.prompt_tokens);
  prompt.Advance(1, options.prompt_tokens);  // warms up
  Run timed(model, backend, 1, options.prompt_tokens, options.prompt_tokens);
  result["prompt_tokens"] = options.prompt_tokens;
  result["prefill_tokens_per_second"] =
      options.prompt_tokens / timed.Advance(1, options.prompt_tokens);
  for (int batch : options.batches) {
    constexpr int kContext = 64, kWarm = 3;
    Run run(model, backend, batch, kContext + kWarm + options.steps, batch * kContext);
    run.Advance(batch, kContext);
    for (int i = 0; i < kWarm; ++i) run.Advance(batch, 1);
    double seconds = 0;
    for (int i = 0; i < options.steps; ++i) seconds += run.Advance(batch, 1);
    result["decode"].push_back(
        {{"batch", batch}, {"tokens_per_second", batch * options.steps / seconds}});
  }
  return result;
}

absl::StatusOr<nlohmann::json> Bench(const Options& options) {
  kernels::CpuOptions cpu{.threads = options.threads};
  if (options.family == "fma") cpu.family = kernels::CpuFamily::kFma;
  if (options.family == "avx512-bf16") cpu.family = kernels::CpuFamily::kAvx512Bf16;
  if (options.family == "amx-bf16") cpu.family = kernels::CpuFamily::kAmxBf16;
  if (options.quantization == "int8") cpu.quantization = kernels::Quantization::kInt8;
  if (options.quantization == "int4") cpu.quantization = kernels::Quantization::kInt4;
  auto [backend, error, note] = kernels::MakeCpuBackend(cpu);
  if (backend == nullptr) return absl::FailedPreconditionError(error);
  ASSIGN_OR_RETURN(const model::ModelConfig config, model::ReadModelConfig(options.folder));
  ASSIGN_OR_RETURN(const std::unique_ptr<model::Checkpoint> checkpoint,
                   model::Checkpoint::Open(options.folder));
  const auto start = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(const std::unique_ptr<model::Model> model,
                   model::Model::Load(config, *checkpoint, *backend));
  const double load_seconds = SecondsSince(start);
  nlohmann::json result = Measure(*model, *backend, options);
  result["backend"] = backend->description();
  result["profile"] = backend->profile();
  result["load_seconds"] = load_seconds;
  result["checkpoint_bytes"] = checkpoint->tensor_bytes();
  result["bytes_per_token"] = BytesPerToken(config, *checkpoint);
  return result;
}

}  // namespace
}  // namespace epic::perf

int main(int argc, char** argv) {
  epic::perf::Options options;
  CLI::App app("Speed of the engine on a checkpoint, as JSON");
  app.add_option("model", options.folder, "a Hugging Face folder")->required();
  app.add_option("--family", options.family)
      ->check(CLI::IsMember({"auto", "fma", "avx512-bf16", "amx-bf16"}));
  app.add_option("--quantization", options.quantization)
      ->check(CLI::IsMember({"none", "int8", "int4"}));
  app.add_option("--threads", options.threads, "0: all cores")->check(CLI::Range(0, 4096));
  app.add_option("--prompt", options.prompt_tokens)->check(CLI::Range(1, 65536));
  app.add_option("--steps", options.steps)->check(CLI::Range(1, 65536));
  app.add_option("--batch", options.batches)->check(CLI::Range(1, 1024));
  CLI11_PARSE(app, argc, argv);
  const auto result = epic::perf::Bench(options);
  if (!result.ok()) {
    std::cerr << result.status().ToString() << "\n";
    return 1;
  }
  std::cout << result->dump() << "\n";
}
