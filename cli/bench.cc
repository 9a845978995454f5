#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "cli/bandwidth.h"
#include "cli/bench_run.h"
#include "cli/commands.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "nlohmann/json.hpp"
#include "worker/engine/memory_plan.h"
#include "worker/options.h"

namespace epic::cli {
namespace {

struct BenchOptions {
  std::string model;
  kernels::CpuFlags cpu;
  std::vector<int> prompts = {512, 2048};
  std::vector<int> batches = {1, 8, 32};
  std::vector<int> contexts = {0, 8192};
  int steps = 32;
  int rounds = 3;
  bool json = false;
};

// The first steps touch memory for the first time. They are not timed.
constexpr int kWarmSteps = 2;
// The buffer must be much larger than the caches, or their speed would be taken for the memory's.
constexpr int64_t kBandwidthBytes = int64_t{1} << 30;

// The percentile of a sorted list, by nearest rank.
double Percentile(const std::vector<double>& sorted, double percent) {
  const auto rank = static_cast<size_t>(std::ceil(percent / 100 * sorted.size()));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

// `rows`: tokens of a step.
nlohmann::json Summary(const char* kind, int context, int rows, const std::vector<TimedStep>& steps,
                       double bandwidth) {
  std::vector<double> seconds;
  double floor_bytes = 0;
  for (const TimedStep& step : steps) {
    seconds.push_back(step.seconds);
    floor_bytes += static_cast<double>(step.floor_bytes) / static_cast<double>(steps.size());
  }
  std::ranges::sort(seconds);
  // The median and not the mean: a step that the machine interrupted must not change the rate.
  const double median = Percentile(seconds, 50);
  return {{"kind", kind},
          {"context", context},
          {"rows", rows},
          {"steps", steps.size()},
          {"tokens_per_second", rows / median},
          {"step_ms_p50", 1e3 * median},
          {"step_ms_p90", 1e3 * Percentile(seconds, 90)},
          {"step_ms_p99", 1e3 * Percentile(seconds, 99)},
          {"floor_bytes", floor_bytes},
          {"floor_share", floor_bytes / median / bandwidth}};
}

// The contexts and prompts that fit the model's positions and this machine's memory. Lengths that
// do not fit are cut and noted, so that the defaults work with every model.
struct Plan {
  BenchLimits limits;
  std::vector<int> contexts, prompts;
  std::vector<std::string> notes;
};

absl::StatusOr<Plan> MakePlan(const BenchOptions& options, const model::Model& model,
                              const kernels::Backend& backend) {
  Plan plan;
  const int positions = model.config().max_position;
  // The decode steps of one measurement follow each other, so the last has as many positions more.
  const int decode = kWarmSteps + options.steps;
  for (const int prompt : options.prompts) {
    const int fitting = std::min(prompt, positions);
    if (fitting < prompt) plan.notes.push_back(absl::StrCat("--prompt ", prompt, ": ", fitting));
    plan.prompts.push_back(fitting);
    plan.limits.prompt_max = std::max(plan.limits.prompt_max, fitting);
  }
  const int more = std::max(decode, plan.limits.prompt_max);
  for (const int context : options.contexts) {
    const int fitting = std::clamp(context, 0, std::max(0, positions - more));
    if (fitting < context) {
      plan.notes.push_back(absl::StrCat("--context ", context, ": ", fitting, ", the model has ",
                                        positions, " positions"));
    }
    // Two contexts that were cut to the same length are measured once.
    if (std::ranges::count(plan.contexts, fitting) == 0) plan.contexts.push_back(fitting);
    plan.limits.context_max = std::max(plan.limits.context_max, fitting);
  }
  // Steps are not cut: the percentiles would be those of another number of steps than was asked
  // for.
  if (decode > positions) {
    return absl::InvalidArgumentError(absl::StrCat("--steps: ", options.steps, ", the model has ",
                                                   positions, " positions, ", kWarmSteps,
                                                   " steps warm up"));
  }
  plan.limits.decode_max = decode;
  plan.limits.sequences = *std::ranges::max_element(options.batches);
  // The weights are loaded by now, so this is the memory that is left for KV pages and buffers.
  ASSIGN_OR_RETURN(const int64_t available, worker::AvailableMemoryBytes());
  const int64_t needed = BenchRun::Bytes(model, backend, plan.limits);
  if (needed > available) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "--batch ", plan.limits.sequences, " after --context ", plan.limits.context_max, " needs ",
        worker::BytesToString(needed), ", there is ", worker::BytesToString(available)));
  }
  return plan;
}

nlohmann::json Measure(const BenchOptions& options, const Plan& plan, const model::Model& model,
                       kernels::Backend& backend, double bandwidth) {
  BenchRun run(model, backend, RealClock(), plan.limits);
  nlohmann::json results = nlohmann::json::array();
  std::vector<TimedStep> steps;
  for (const int context : plan.contexts) {
    for (const int prompt : plan.prompts) {
      steps.clear();
      for (int round = 0; round <= options.rounds; ++round) {
        // Each prompt lengthens the sequence, so every round starts from the context anew.
        run.SetContext(context);
        const TimedStep step = run.Prefill(prompt);
        if (round > 0) steps.push_back(step);  // the first warms up
      }
      results.push_back(Summary("prefill", context, prompt, steps, bandwidth));
    }
    for (const int batch : options.batches) {
      steps.clear();
      run.SetContext(context);
      for (int i = 0; i < kWarmSteps; ++i) run.Decode(batch);
      for (int i = 0; i < options.steps; ++i) steps.push_back(run.Decode(batch));
      results.push_back(Summary("decode", context, batch, steps, bandwidth));
    }
  }
  return results;
}

absl::StatusOr<nlohmann::json> Bench(const BenchOptions& options) {
  ASSIGN_OR_RETURN(const model::ModelConfig config, model::ReadModelConfig(options.model));
  ASSIGN_OR_RETURN(std::unique_ptr<model::Checkpoint> checkpoint,
                   model::Checkpoint::Open(options.model));
  auto [backend, error, note] = kernels::MakeCpuBackend(kernels::ParseCpuFlags(options.cpu));
  if (backend == nullptr) return absl::FailedPreconditionError("--numerics: " + error);
  const int threads = backend->compute_threads();
  // Measured before the weights are loaded, and its buffer is gone by then: a model that barely
  // fits must still fit.
  const double bandwidth = MemoryBandwidth(threads, kBandwidthBytes);
  const absl::Time start = RealClock().Now();
  ASSIGN_OR_RETURN(const std::unique_ptr<model::Model> model,
                   model::Model::Load(config, *checkpoint, *backend));
  const double load_seconds = absl::ToDoubleSeconds(RealClock().Now() - start);
  ASSIGN_OR_RETURN(const Plan plan, MakePlan(options, *model, *backend));
  nlohmann::json report = {{"model", options.model},
                           {"backend", backend->description()},
                           {"profile", backend->profile()},
                           {"note", note},
                           {"threads", threads},
                           {"checkpoint_bytes", checkpoint->tensor_bytes()},
                           {"packed_bytes", BenchRun::WeightBytes(*model)},
                           {"load_seconds", load_seconds},
                           {"bandwidth_bytes_per_second", bandwidth},
                           {"notes", plan.notes}};
  // The backend has its own copy of the weights. The mapped files would compete for memory.
  checkpoint.reset();
  report["results"] = Measure(options, plan, *model, *backend, bandwidth);
  return report;
}

void PrintTable(const nlohmann::json& report) {
  absl::PrintF("%s\n%s\n", report["backend"].get<std::string>(),
               report["profile"].get<std::string>());
  for (const auto& note : report["notes"]) absl::PrintF("%s\n", note.get<std::string>());
  absl::PrintF("%.2f GB of weights, loaded in %.1f s; memory delivers %.1f GB/s to %d threads\n\n",
               report["packed_bytes"].get<double>() / 1e9, report["load_seconds"].get<double>(),
               report["bandwidth_bytes_per_second"].get<double>() / 1e9,
               report["threads"].get<int>());
  absl::PrintF("%-8s %8s %6s %10s %9s %9s %9s %9s %9s\n", "", "context", "rows", "tokens/s",
               "ms p50", "p90", "p99", "MB read", "of memory");
  for (const auto& r : report["results"]) {
    absl::PrintF("%-8s %8d %6d %10.1f %9.2f %9.2f %9.2f %9.1f %7.0f %%\n",
                 r["kind"].get<std::string>(), r["context"].get<int>(), r["rows"].get<int>(),
                 r["tokens_per_second"].get<double>(), r["step_ms_p50"].get<double>(),
                 r["step_ms_p90"].get<double>(), r["step_ms_p99"].get<double>(),
                 r["floor_bytes"].get<double>() / 1e6, 100 * r["floor_share"].get<double>());
  }
}

int Run(const BenchOptions& options) {
  const auto report = Bench(options);
  if (!report.ok()) {
    std::cerr << "error: " << report.status().message() << std::endl;
    return 1;
  }
  if (options.json) {
    std::cout << report->dump(1) << std::endl;
  } else {
    PrintTable(*report);
  }
  return 0;
}

}  // namespace

void AddBenchCommand(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* command =
      app.add_subcommand("bench", "Measure a model's speed on this CPU, without a server.");
  command->add_option("model", options->model, "The folder of the Hugging Face checkpoint.")
      ->required();
  worker::AddCpuOptions(*command, {.threads = &options->cpu.threads,
                                   .pin_threads = &options->cpu.pin_threads,
                                   .numerics = &options->cpu.numerics,
                                   .quantization = &options->cpu.quantization,
                                   .kv_cache_dtype = &options->cpu.kv_cache_dtype,
                                   .prompt_attention = &options->cpu.prompt_attention});
  const auto numbers = [&](const char* name, std::vector<int>& values, int lowest, int highest,
                           const char* help) {
    command->add_option(name, values, help)
        ->check(CLI::Range(lowest, highest))
        ->delimiter(',')
        ->capture_default_str();
  };
  numbers("--prompt", options->prompts, 1, 1 << 16,
          "The numbers of tokens of a prompt, which is computed in one step.");
  numbers("--batch", options->batches, 1, 1024,
          "The numbers of sequences that decode side by side.");
  numbers("--context", options->contexts, 0, 1 << 20,
          "The numbers of tokens before the timed ones.");
  command->add_option("--steps", options->steps, "The number of timed decode steps.")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command->add_option("--rounds", options->rounds, "The number of timed prompts of each length.")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print JSON instead of a table.");
  command->callback([options, exit_code] { *exit_code = Run(*options); });
}

}  // namespace epic::cli
