// epic-worker: one rank. It loads the model, dials the coordinator and computes.
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <iostream>
#include <memory>
#include <optional>

#include "base/epoll_loop.h"
#include "base/log.h"
#include "base/status.h"
#include "cluster/grpc/control_client.h"
#include "cluster/version.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "worker/engine/engine.h"
#include "worker/engine/memory_plan.h"
#include "worker/engine/transformer.h"
#include "worker/options.h"
#include "worker/service/worker_service.h"

namespace epic::worker {
namespace {

// What is known before anything is loaded.
struct Plan {
  model::ModelConfig config;
  std::unique_ptr<model::Checkpoint> checkpoint;
  std::unique_ptr<kernels::Backend> backend;
  model::WeightPlan weights;
  EngineLimits limits;
  MemoryPlan memory;
};

absl::StatusOr<std::unique_ptr<kernels::Backend>> MakeBackend(const WorkerOptions& options) {
  kernels::CpuOptions cpu{.threads = options.threads};
  if (options.numerics == "fma") cpu.family = kernels::CpuFamily::kFma;
  if (options.numerics == "amx-bf16") cpu.family = kernels::CpuFamily::kAmxBf16;
  kernels::CpuBackendResult made = kernels::MakeCpuBackend(cpu);
  if (made.backend == nullptr) return absl::FailedPreconditionError("--numerics: " + made.error);
  if (!made.note.empty()) LOG_INFO("{}", made.note);
  LOG_INFO("{}, numeric profile {}", made.backend->description(), made.backend->profile());
  return std::move(made.backend);
}

absl::StatusOr<Plan> MakePlan(const WorkerOptions& options) {
  Plan plan;
  ASSIGN_OR_RETURN(plan.config, model::ReadModelConfig(options.model));
  if (options.max_model_len > plan.config.max_position) {
    return absl::InvalidArgumentError("--max-model-len: " + std::to_string(options.max_model_len) +
                                      ", the model has " +
                                      std::to_string(plan.config.max_position) + " positions");
  }
  ASSIGN_OR_RETURN(plan.checkpoint, model::Checkpoint::Open(options.model));
  for (const std::string& warning : plan.checkpoint->warnings()) LOG_WARNING("{}", warning);
  ASSIGN_OR_RETURN(plan.backend, MakeBackend(options));
  ASSIGN_OR_RETURN(plan.weights, model::PlanWeights(plan.config, *plan.checkpoint, {}));
  const int rows_max = std::max(options.max_num_batched_tokens, options.max_num_seqs);
  plan.limits.scheduler = {.max_num_batched_tokens = rows_max,
                           .max_num_seqs = options.max_num_seqs,
                           .max_logit_rows = std::max(512, options.max_num_seqs)};
  plan.limits.max_model_len =
      options.max_model_len > 0 ? options.max_model_len : plan.config.max_position;
  ASSIGN_OR_RETURN(const int64_t available_bytes, AvailableMemoryBytes());
  const kernels::KvLayout layout{plan.config.kv_lora_rank, plan.config.qk_rope_head_dim};
  ASSIGN_OR_RETURN(plan.memory,
                   PlanMemory({.weights_bytes = plan.weights.packed_bytes,
                               .embedding_bytes = plan.weights.embedding_bytes,
                               .loading_bytes = plan.weights.largest_tensor_bytes,
                               .buffers_bytes = model::StepBuffers::Bytes(
                                   plan.config, rows_max, plan.limits.scheduler.max_logit_rows),
                               .page_bytes = KvPool::PageBytes(layout, plan.config.layer_count)},
                              {.available_bytes = available_bytes,
                               .utilization = options.memory_utilization,
                               .kv_cache_bytes = options.kv_cache_bytes,
                               .max_model_len = plan.limits.max_model_len,
                               .max_num_seqs = options.max_num_seqs}));
  return plan;
}

// The link to the coordinator, dialled anew under a new generation when it is down for good.
class Connection {
 public:
  Connection(Env env, const std::string& address, std::optional<cluster::JoinToken> token,
             WorkerService& service)
      : env_(env), address_(address), token_(std::move(token)), service_(service) {
    Dial();
  }

  // Why the coordinator will never take this worker.
  const absl::Status& refusal() const { return refusal_; }

 private:
  void Dial() {
    v1::ControlHello hello;
    hello.set_generation(env_.random.Next());
    hello.set_build_id(cluster::kBuildId);
    link_ = cluster::DialControl(
        env_, address_, hello,
        {.on_message = [this](const v1::ControlMessage& message) { service_.OnMessage(message); },
         .on_down = [this](absl::Status status) { OnDown(std::move(status)); }},
        token_);
    service_.Connect(link_.get());
  }

  void OnDown(absl::Status status) {
    LOG_WARNING("the coordinator's link is down: {}", std::string(status.message()));
    if (absl::IsFailedPrecondition(status)) refusal_ = std::move(status);
    // The link is on the stack.
    env_.loop.Post([this] {
      service_.Connect(nullptr);
      link_.reset();
      if (refusal_.ok()) Dial();
    });
  }

  Env env_;
  const std::string address_;
  const std::optional<cluster::JoinToken> token_;
  WorkerService& service_;
  std::unique_ptr<cluster::ControlLink> link_;
  absl::Status refusal_;
};

absl::Status Serve(const WorkerOptions& options, Plan& plan, int signals) {
  EpollLoop loop(RealClock());
  const Env env{RealClock(), loop, RealRandom(), RealThreads()};
  WorkerService service(RealClock());
  bool ends = false;
  loop.Watch(signals, [&] {
    signalfd_siginfo signal;
    if (read(signals, &signal, sizeof signal) != sizeof signal) return;
    // Ctrl-C reaches the whole terminal; the parent decides what it means.
    if (options.exit_with_parent && signal.ssi_signo == SIGINT) return;
    ends = true;
    service.StartDraining();
  });
  std::optional<cluster::JoinToken> token;
  if (!options.join_token_file.empty()) {
    ASSIGN_OR_RETURN(token, cluster::JoinToken::ReadFile(options.join_token_file));
  }
  Connection connection(env, options.coordinator, std::move(token), service);
  const int64_t source_bytes = plan.weights.source_bytes;
  service.ReportLoading(0, source_bytes);
  const absl::Time began = RealClock().Now();
  ASSIGN_OR_RETURN(const std::unique_ptr<model::Model> model,
                   model::Model::Load(plan.config, *plan.checkpoint, *plan.backend,
                                      {.progress = [&](int64_t bytes) {
                                        service.ReportLoading(std::min(bytes, source_bytes),
                                                              source_bytes);
                                        loop.RunOnce(absl::ZeroDuration());
                                      }}));
  const std::string fingerprint = plan.checkpoint->fingerprint();
  plan.checkpoint.reset();
  LOG_INFO("loaded {} in {:.1f} s", BytesToString(source_bytes),
           absl::ToDoubleSeconds(RealClock().Now() - began));
  KvPool pool(*plan.backend, model->kv_layout(), plan.config.layer_count, plan.memory.page_count);
  PageLedger pages(plan.memory.page_count, [&](int32_t page) { pool.ZeroPage(page); });
  const SchedulerLimits& limits = plan.limits.scheduler;
  Transformer transformer(*model, *plan.backend, pool, limits.max_num_batched_tokens,
                          limits.max_logit_rows);
  Engine engine(plan.limits, transformer, pages);
  v1::WorkerReady ready;
  ready.set_profile(plan.backend->profile());
  ready.set_checkpoint(fingerprint);
  ready.set_kv_page_count(plan.memory.page_count);
  ready.set_kv_page_tokens(kernels::kPageTokens);
  ready.set_max_model_len(plan.limits.max_model_len);
  ready.set_max_num_seqs(limits.max_num_seqs);
  ready.set_description(plan.backend->description());
  service.Serve(engine, std::move(ready));
  while (connection.refusal().ok() && !(ends && service.drained())) {
    loop.RunOnce(service.busy() ? absl::ZeroDuration() : absl::Milliseconds(200));
    service.Advance();
  }
  return connection.refusal();
}

absl::Status Run(const WorkerOptions& options, int signals) {
  ASSIGN_OR_RETURN(Plan plan, MakePlan(options));
  if (options.dry_run) {
    std::cout << plan.memory.ToString() << std::endl;
    return absl::OkStatus();
  }
  if (options.coordinator.empty()) return absl::InvalidArgumentError("--coordinator is missing");
  LOG_INFO("memory plan:\n{}", plan.memory.ToString());
  return Serve(options, plan, signals);
}

}  // namespace
}  // namespace epic::worker

int main(int argc, char** argv) {
  epic::worker::WorkerOptions options;
  CLI::App app("EPIC's worker: loads a model and computes for a coordinator");
  epic::worker::AddWorkerOptions(app, options);
  CLI11_PARSE(app, argc, argv);
  // Before any thread, so that all leave the signals to the loop.
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  if (options.exit_with_parent) prctl(PR_SET_PDEATHSIG, SIGKILL);
  epic::InitLog("worker", options.log_level);
  const absl::Status status =
      epic::worker::Run(options, signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (status.ok()) return 0;
  std::cerr << "error: " << status.message() << std::endl;
  return 1;
}
