// epic-coordinator: the door for clients and the mind across ranks.
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/epoll_loop.h"
#include "base/log.h"
#include "base/storage.h"
#include "base/status.h"
#include "cluster/grpc/control_server.h"
#include "cluster/version.h"
#include "coordinator/core/core.h"
#include "coordinator/frontend/context.h"
#include "coordinator/frontend/grpc_inference.h"
#include "coordinator/frontend/http_server.h"
#include "coordinator/frontend/metrics.h"
#include "coordinator/metrics/metrics_page.h"
#include "coordinator/options.h"
#include "coordinator/service/cluster_service.h"
#include "coordinator/service/grpc_listener.h"
#include "coordinator/term.h"
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

std::vector<std::string> ServedNames(const CoordinatorOptions& options) {
  if (!options.served_model_names.empty()) return options.served_model_names;
  std::filesystem::path folder = std::filesystem::path(options.model).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();
  return {folder.filename().string()};
}

std::string Address(const std::string& host, int port) {
  return absl::StrContains(host, ':') ? absl::StrCat("[", host, "]:", port)
                                      : absl::StrCat(host, ":", port);
}

// EPIC_TIME_SCALE stretches what counts as too late: for sanitizers and crowded machines.
LivenessLimits ScaledLimits() {
  LivenessLimits limits;
  const char* const given = std::getenv("EPIC_TIME_SCALE");
  double scale = 1;
  if (given == nullptr || !absl::SimpleAtod(given, &scale) || !(scale >= 1 && scale <= 1000)) {
    return limits;
  }
  LOG_INFO("times of liveness are stretched by {}", scale);
  limits.tick_min *= scale;
  limits.silence *= scale;
  limits.loading_silence *= scale;
  return limits;
}

// 32 bytes of which nobody knows anything.
std::string NewSecret(Random& random) {
  std::string secret;
  while (secret.size() < 32) {
    const uint64_t bits = random.Next();
    secret.append(reinterpret_cast<const char*>(&bits), sizeof bits);
  }
  return secret;
}

// None: there is no token, and none is needed.
absl::StatusOr<std::optional<cluster::JoinToken>> ReadToken(const CoordinatorOptions& options) {
  const bool local = IsLoopback(options.control);
  std::optional<cluster::JoinToken> token;
  if (!options.join_token_file.empty()) {
    ASSIGN_OR_RETURN(token, cluster::JoinToken::ReadFile(options.join_token_file));
  }
  if (local) return token;
  if (!token) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--join-token-file is needed: other machines reach --control ", options.control));
  }
  if (!options.insecure) {
    return absl::InvalidArgumentError(
        absl::StrCat("--insecure is needed: --control ", options.control,
                     " is not encrypted, and belongs on a private network"));
  }
  LOG_WARNING("--insecure: the control stream on {} is not encrypted", options.control);
  return token;
}

absl::StatusOr<uint64_t> TermOf(const CoordinatorOptions& options) {
  if (options.state_dir.empty()) return TermOfClock(RealClock().Now());
  absl::StatusOr<uint64_t> term = NextTerm(RealStorage(), options.state_dir);
  if (term.ok()) return term;
  return absl::Status(term.status().code(),
                      absl::StrCat("--state-dir: ", term.status().message()));
}

WorldOptions WorldOf(const CoordinatorOptions& options, uint64_t term, bool with_token) {
  return {.term = term,
          .expect_ranks = options.expect_ranks,
          .replicas_max = options.expert_replicas,
          .drain_move_after = absl::Seconds(options.drain_move_after_s),
          .liveness = ScaledLimits(),
          .pair_secret = with_token ? NewSecret(RealRandom()) : ""};
}

// All of the running coordinator.
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
               .world = WorldOf(options, term_, token.has_value())},
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
    if (!options_.event_log.empty()) {
      RETURN_IF_ERROR(core_.events().OpenFile(env_, options_.event_log));
    }
    ASSIGN_OR_RETURN(control_listener_,
                     GrpcListener::Start({.address = options_.control}, {control_.service()}));
    ASSIGN_OR_RETURN(operators_listener_, GrpcListener::Start({.address = options_.operators},
                                                              {cluster_service_.get()}));
    const std::string grpc_address = Address(options_.host, options_.grpc_port);
    ASSIGN_OR_RETURN(grpc_listener_,
                     GrpcListener::Start({.address = grpc_address, .client_api = true},
                                         {inference_service_.get()}));
    ASSIGN_OR_RETURN(const int port, http_.Start());
    LOG_INFO("HTTP on {}, gRPC on {}, workers on {}", Address(options_.host, port), grpc_address,
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
    core_.StartDraining();
    grpc_listener_->SetServing(false);
    http_.Drain();
    drain_until_ = env_.clock.Now() + absl::Seconds(options_.shutdown_timeout_s);
    Wait();
  }

  void Stop() {
    control_.Close();
    core_.Close();
    // What operators wait for.
    loop_.RunOnce(absl::ZeroDuration());
    http_.Stop();
    for (auto* listener : {&grpc_listener_, &operators_listener_, &control_listener_}) {
      if (*listener != nullptr) (*listener)->Stop();
    }
  }

 private:
  void Watch() {
    if (draining_) return;
    grpc_listener_->SetServing(core_.status().ready);
    loop_.At(env_.clock.Now() + absl::Milliseconds(200), [this] { Watch(); });
  }

  void Wait() {
    if (core_.active_requests() + http_.active_requests() == 0) return loop_.Stop();
    if (env_.clock.Now() >= drain_until_) return End();
    loop_.At(env_.clock.Now() + absl::Milliseconds(20), [this] { Wait(); });
  }

  // Tells the streams that are left, and gives them a moment to pass it on.
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

absl::Status Run(const CoordinatorOptions& options, int signals) {
  ASSIGN_OR_RETURN(const ModelFiles files, LoadModelFiles(options.model));
  ASSIGN_OR_RETURN(std::optional<cluster::JoinToken> token, ReadToken(options));
  // Before anything listens: who reaches this life knows its term.
  ASSIGN_OR_RETURN(const uint64_t term, TermOf(options));
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

}  // namespace
}  // namespace epic::coordinator

int main(int argc, char** argv) {
  epic::coordinator::CoordinatorOptions options;
  CLI::App app("EPIC's coordinator: HTTP and gRPC for clients, and the mind across workers");
  epic::coordinator::AddCoordinatorOptions(app, options);
  CLI11_PARSE(app, argc, argv);
  // Before any thread, so that all leave the signals to the loop.
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  if (options.exit_with_parent) prctl(PR_SET_PDEATHSIG, SIGKILL);
  epic::InitLog("coordinator", options.log_level);
  const absl::Status status =
      epic::coordinator::Run(options, signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (status.ok()) return 0;
  std::cerr << "error: " << status.message() << std::endl;
  return 1;
}
