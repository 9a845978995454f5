#include "coordinator/program.h"

#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/epoll_loop.h"
#include "base/log.h"
#include "base/status.h"
#include "base/storage.h"
#include "cluster/grpc/control_server.h"
#include "cluster/version.h"
#include "coordinator/core/core.h"
#include "coordinator/frontend/context.h"
#include "coordinator/frontend/grpc_inference.h"
#include "coordinator/frontend/http_server.h"
#include "coordinator/frontend/metrics.h"
#include "coordinator/metrics/metrics_page.h"
#include "coordinator/service/cluster_service.h"
#include "coordinator/service/grpc_listener.h"
#include "coordinator/setup.h"
#include "grpcpp/impl/service_type.h"
#include "model/config.h"

namespace epic::coordinator {
namespace {

struct ModelFiles {
  model::ModelConfig config;
  model::GenerationDefaults defaults;
  std::shared_ptr<const text::Tokenizer> tokenizer;
  std::shared_ptr<const text::ChatTemplate> chat_template;
};

absl::StatusOr<ModelFiles> LoadModelFiles(const std::string& folder) {
  ModelFiles files;
  ASSIGN_OR_RETURN(files.config, model::ReadModelConfig(folder));
  ASSIGN_OR_RETURN(files.defaults, model::ReadGenerationDefaults(folder, files.config));
  ASSIGN_OR_RETURN(files.tokenizer, text::Tokenizer::Load(folder));
  auto chat_template = text::ChatTemplate::Load(folder);
  // A base model has no template: its completions are served, and its chats are refused.
  if (chat_template.ok()) {
    files.chat_template = *chat_template;
  } else if (!absl::IsNotFound(chat_template.status())) {
    return chat_template.status();
  }
  return files;
}

FrontendContext NewContext(const CoordinatorOptions& options, const ModelFiles& files, Env env,
                           Inference& inference, FrontendMetrics& metrics,
                           const MetricsPage& metrics_page) {
  FrontendContext context{.inference = inference,
                          .clock = env.clock,
                          .random = env.random,
                          .metrics = metrics,
                          .metrics_page = metrics_page,
                          .tokenizer = files.tokenizer,
                          .chat_template = files.chat_template};
  const model::GenerationDefaults& defaults = files.defaults;
  // All these fields count as set, and those of a request are merged over them (CompleteSampling).
  v1::Sampling& sampling = context.defaults.sampling;
  sampling.set_temperature(static_cast<float>(defaults.temperature));
  sampling.set_top_p(static_cast<float>(defaults.top_p));
  sampling.set_top_k(defaults.top_k);
  sampling.set_min_p(static_cast<float>(defaults.min_p));
  sampling.set_repetition_penalty(static_cast<float>(defaults.repetition_penalty));
  context.defaults.eos_ids = defaults.eos_token_ids;
  context.limits.timeout = absl::Seconds(options.default_timeout_s);
  context.api_keys = options.api_keys;
  context.version = cluster::kBuildId;
  context.browser = BrowserRules({.origins = options.cors_origins,
                                  .hosts = options.allowed_hosts,
                                  .loopback = IsLoopbackHost(options.host)});
  return context;
}

// All of the running coordinator. Its members are made in this order and destroyed in the reverse
// one, because each may use those above it.
class Program {
 public:
  Program(const CoordinatorOptions& options, const ModelFiles& files,
          std::optional<cluster::JoinToken> token, uint64_t term, EpollLoop& loop)
      : options_(options),
        loop_(loop),
        env_{RealClock(), loop, RealRandom(), RealThreads(), RealStorage()},
        term_(term),
        core_(env_,
              {.names = ServedNames(options),
               .vocab_size = files.tokenizer->vocab_size(),
               .admission = {.requests_max = options.max_queued_requests},
               // Pairs of ranks get keys only where a token proves who gets them.
               .world = WorldOptionsOf(options, term_, ScaledLimits(std::getenv("EPIC_TIME_SCALE")),
                                       token ? NewSecret(RealRandom()) : "")},
              files.tokenizer),
        metrics_page_(core_),
        metrics_(metrics_page_),
        context_(NewContext(options, files, env_, core_, metrics_, metrics_page_)),
        control_(env_, {.term = term_, .build_id = cluster::kBuildId, .token = std::move(token)},
                 [this](const v1::ControlHello& hello, std::unique_ptr<cluster::ControlLink> link) {
                   return core_.AddWorker(hello, std::move(link));
                 }),
        cluster_service_(NewClusterService(core_, core_, term_)),
        inference_service_(NewGrpcInference(context_, RealThreads())),
        http_(RealThreads(), {.host = options.host, .port = options.port}, context_) {
    metrics_page_.AddCounter(
        "epic_replay_mismatch_total", "Tokens that came again and differed: must stay 0",
        [this] { return static_cast<double>(core_.metrics().replay_mismatches); });
    metrics_page_.AddCounter("epic_resubmissions_total", "Sequences submitted again",
                             [this] { return static_cast<double>(core_.metrics().resubmissions); });
    metrics_page_.AddCounter("epic_workers_lost_total", "Workers lost",
                             [this] { return static_cast<double>(core_.metrics().workers_lost); });
    metrics_page_.AddCounter("epic_requests_quarantined_total",
                             "Requests that killed a worker alone, twice",
                             [this] { return static_cast<double>(core_.metrics().quarantined); });
    metrics_page_.AddCounter(
        "epic_event_log_failed_writes_total", "Events that --event-log has not",
        [this] { return static_cast<double>(core_.events().failed_writes()); });
  }

  absl::Status Start() {
    // The log is open before anything can happen that belongs in it, and clients come last: what
    // they ask for must be there.
    if (!options_.event_log.empty()) {
      RETURN_IF_ERROR(core_.events().OpenFile(env_, options_.event_log));
    }
    ASSIGN_OR_RETURN(control_listener_,
                     GrpcListener::Start({.address = options_.control}, {control_.service()}));
    ASSIGN_OR_RETURN(operators_listener_, GrpcListener::Start({.address = options_.operators},
                                                              {cluster_service_.get()}));
    const std::string grpc_address = AddressOf(options_.host, options_.grpc_port);
    ASSIGN_OR_RETURN(grpc_listener_,
                     GrpcListener::Start({.address = grpc_address, .client_api = true},
                                         {inference_service_.get()}));
    ASSIGN_OR_RETURN(const int port, http_.Start());
    LOG_INFO("HTTP on {}, gRPC on {}, workers on {}", AddressOf(options_.host, port), grpc_address,
             options_.control);
    LOG_INFO("term {}{}; accepted requests survive workers, not this process", term_,
             options_.state_dir.empty() ? "" : ", kept in " + options_.state_dir);
    Watch();
    return absl::OkStatus();
  }

  // A second call ends what still runs.
  void Drain() {
    if (draining_) return End();
    draining_ = true;
    LOG_INFO("draining: {} requests to end within {} s", core_.active_requests(),
             options_.shutdown_timeout_s);
    // The core refuses first, so whatever the frontends still let in is answered with 503.
    core_.StartDraining();
    grpc_listener_->SetServing(false);
    http_.Drain();
    drain_until_ = env_.clock.Now() + absl::Seconds(options_.shutdown_timeout_s);
    Wait();
  }

  void Stop() {
    // First, so that links which end from now on are not taken for workers that were lost.
    control_.Close();
    core_.Close();
    // Tasks that were posted before run now: operators wait for some, and afterwards no task may be
    // left that refers to the core.
    loop_.RunOnce(absl::ZeroDuration());
    http_.Stop();
    for (auto* listener : {&grpc_listener_, &operators_listener_, &control_listener_}) {
      if (*listener != nullptr) (*listener)->Stop();
    }
  }

 private:
  void Watch() {
    if (draining_) return;
    // gRPC's health service cannot ask, so it is told.
    grpc_listener_->SetServing(core_.status().ready);
    loop_.At(env_.clock.Now() + absl::Milliseconds(200), [this] { Watch(); });
  }

  void Wait() {
    // An answer may have ended in the core and still be on its way to a slow client, so both must
    // be done. Both periods of polling, 20 ms here and 200 ms above, are chosen.
    if (core_.active_requests() + http_.active_requests() == 0) return loop_.Stop();
    if (env_.clock.Now() >= drain_until_) return End();
    loop_.At(env_.clock.Now() + absl::Milliseconds(20), [this] { Wait(); });
  }

  // Tells the streams that are left, and gives them 300 ms (chosen) to pass it on.
  void End() {
    LOG_WARNING("ending {} requests", core_.active_requests());
    core_.EndAll(absl::UnavailableError("the server is shutting down"));
    loop_.At(env_.clock.Now() + absl::Milliseconds(300), [this] { loop_.Stop(); });
  }

  const CoordinatorOptions& options_;
  EpollLoop& loop_;
  Env env_;
  const uint64_t term_;
  Core core_;
  MetricsPage metrics_page_;
  FrontendMetrics metrics_;
  const FrontendContext context_;
  cluster::ControlServer control_;
  std::unique_ptr<grpc::Service> cluster_service_, inference_service_;
  std::unique_ptr<GrpcListener> control_listener_, operators_listener_, grpc_listener_;
  HttpServer http_;
  bool draining_ = false;
  absl::Time drain_until_;
};

}  // namespace

absl::Status RunProgram(const CoordinatorOptions& options, int signals) {
  ASSIGN_OR_RETURN(const ModelFiles files, LoadModelFiles(options.model));
  ASSIGN_OR_RETURN(std::optional<cluster::JoinToken> token, ReadToken(options));
  // The term is stored before anything listens: a worker must never learn one that could come
  // again.
  ASSIGN_OR_RETURN(const uint64_t term, TermOf(options, RealStorage(), RealClock().Now()));
  EpollLoop loop(RealClock());
  Program program(options, files, std::move(token), term, loop);
  if (absl::Status status = program.Start(); !status.ok()) {
    program.Stop();
    return status;
  }
  loop.Watch(signals, [&] {
    signalfd_siginfo signal;
    if (read(signals, &signal, sizeof signal) != sizeof signal) return;
    // Ctrl-C reaches the whole terminal; the parent decides what it means.
    if (options.exit_with_parent && signal.ssi_signo == SIGINT) return;
    program.Drain();
  });
  loop.Run();
  program.Stop();
  LOG_INFO("ended");
  return absl::OkStatus();
}

}  // namespace epic::coordinator
