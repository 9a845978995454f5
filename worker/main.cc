// epic-worker: one rank. It dials the coordinator, loads what its roles need, and computes.
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>

#include "absl/strings/numbers.h"
#include "base/epoll_loop.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "base/status.h"
#include "cluster/transport/peer_transport.h"
#include "kernels/threads/thread_pool.h"
#include "worker/connection.h"
#include "worker/device.h"
#include "worker/engine/transformer.h"
#include "worker/exchange/message_exchange.h"
#include "worker/exchange/start_epochs.h"
#include "worker/experts/loaded_experts.h"
#include "worker/lock_step_rank.h"
#include "worker/options.h"
#include "worker/rank/work.h"
#include "worker/rank_plan.h"
#include "worker/service/rank_service.h"
#include "worker/service/worker_service.h"

namespace epic::worker {
namespace {

// Equal for processes of one machine.
std::string HostName() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id.substr(0, id.find('-'));
}

int64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t total_pages = 0, resident_pages = 0;
  file >> total_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

absl::StatusOr<cluster::PeerTransportOptions> WiresOf(const WorkerOptions& options) {
  cluster::PeerTransportOptions wires{.host_name = HostName(), .run_dir = options.run_dir};
  if (options.transport == "shm") wires.wires = cluster::WireChoice::kShm;
  if (options.transport == "tcp") wires.wires = cluster::WireChoice::kTcp;
  const size_t colon = options.exchange_address.rfind(':');
  if (colon == std::string::npos ||
      !absl::SimpleAtoi(options.exchange_address.substr(colon + 1), &wires.listen_port)) {
    return absl::InvalidArgumentError("--exchange-address: " + options.exchange_address +
                                      " is not HOST:PORT");
  }
  wires.listen_host = options.exchange_address.substr(0, colon);
  if (options.local_ranks <= kernels::ThreadPool::AvailableCores()) {
    wires.spin = cluster::kSpinMax;
  }
  wires.advertised_host = options.advertised_host;
  return wires;
}

// What a rank with the attention role holds.
struct Attention {
  Attention(RankPlan& plan, std::unique_ptr<model::Model> loaded, model::ExpertExchange& exchange)
      : model(std::move(loaded)),
        pool(*plan.backend, model->kv_layout(), plan.config.layer_count, plan.memory.page_count),
        pages(plan.memory.page_count, [this](int32_t page) { pool.ZeroPage(page); }),
        transformer(*model, *plan.backend, exchange, pool,
                    plan.limits.scheduler.max_num_batched_tokens,
                    plan.limits.scheduler.max_logit_rows),
        engine(plan.limits, transformer, pages) {}

  std::unique_ptr<model::Model> model;
  KvPool pool;
  PageLedger pages;
  Transformer transformer;
  Engine engine;
};

class Rank {
 public:
  Rank(const WorkerOptions& options, RankPlan& plan, std::optional<cluster::JoinToken> token,
       cluster::PeerTransport& transport, EpollLoop& loop, Env env)
      : options_(options),
        plan_(plan),
        loop_(loop),
        env_(env),
        transport_(transport),
        slots_(env.clock, plan.config, *plan.checkpoint, *plan.backend, plan.expert_slots,
               plan.expert.source_bytes),
        exchange_(
            plan.exchange_shape(), {}, env.clock, network_, slots_,
            {.on_link_up = [this](const cluster::RankEntry& rank) { service_.OnLinkUp(rank); },
             .on_link_down = [this](const cluster::RankEntry& rank,
                                    const absl::Status& why) { service_.OnLinkDown(rank, why); }}),
        sequences_(env.clock),
        service_(env.clock, exchange_, options.experts() ? &slots_ : nullptr,
                 {.on_revoked = [this](const std::string&) { connection_->Renew(); }}),
        connection_(std::in_place, env, options.coordinator, Identity(), std::move(token),
                    Connection::Handlers{
                        .on_message = [this](const v1::ControlMessage& m) { OnMessage(m); },
                        .on_link = [this](cluster::ControlLink* link) { OnLink(link); }}) {
    plan.backend->SetInterlude([this] { Interlude(); });
    loop_.At(env_.clock.Now(), [this] { OnReportTime(); });
  }
  ~Rank() { plan_.backend->SetInterlude({}); }

  absl::Status Run() {
    if (options_.attention()) RETURN_IF_ERROR(LoadAttention());
    while (connection_->refusal().ok() && !(ends_ && sequences_.drained() && MayLeave())) {
      Await();
      const bool serves_others = options_.experts() && exchange_.has_peers();
      if (attention_) attention_->transformer.PaceAttention(serves_others ? &env_.clock : nullptr);
      const bool stepping = sequences_.busy();
      sequences_.Advance();
      if (stepping && !sequences_.waiting()) sleep_meter_.Worked(inputs());
      if (exchange_.Serve()) sleep_meter_.Worked(inputs());
      if (service_.loading()) sleep_meter_.Worked(inputs());
      service_.Advance();
    }
    return connection_->refusal();
  }

  // Takes no new sequences, and ends with the last. A rank that nobody supervises first lets the
  // coordinator move its experts, for a while; a second call waits no longer.
  void Drain() {
    const bool waits = !options_.exit_with_parent && !std::exchange(ends_, true);
    ends_ = true;
    leave_at_ = env_.clock.Now() + (waits ? kLeaveTime : absl::ZeroDuration());
    sequences_.StartDraining();
    if (waits) service_.AskToLeave();
  }

 private:
  static constexpr absl::Duration kIdleWait = absl::Milliseconds(50);
  static constexpr absl::Duration kLeaveTime = absl::Seconds(20);

  bool MayLeave() const { return told_to_drain_ || env_.clock.Now() >= leave_at_; }
  v1::WorkerIdentity Identity() const {
    v1::WorkerIdentity identity = plan_.identity();
    identity.set_attention(options_.attention());
    identity.set_experts(options_.experts());
    identity.set_host(HostName());
    // Only where peers may come through shared memory.
    if (options_.transport != "tcp") identity.set_run_dir(options_.run_dir);
    identity.set_address(transport_.address());
    return identity;
  }

  absl::Status LoadAttention() {
    const int64_t source_bytes = plan_.weights.source_bytes;
    const absl::Time began = env_.clock.Now();
    const model::LoadOptions load{.wants_expert = [](int, int) { return false; },
                                  .progress =
                                      [&](int64_t bytes) {
                                        sequences_.ReportLoading(std::min(bytes, source_bytes),
                                                                 source_bytes);
                                        loop_.RunOnce(absl::ZeroDuration());
                                      }};
    ASSIGN_OR_RETURN(auto model,
                     model::Model::Load(plan_.config, *plan_.checkpoint, *plan_.backend, load));
    LOG_INFO("loaded {} in {:.1f} s", BytesToString(source_bytes),
             absl::ToDoubleSeconds(env_.clock.Now() - began));
    service_.set_base_bytes(source_bytes);
    attention_.emplace(plan_, std::move(model), exchange_);
    sequences_.Serve(attention_->engine, plan_.ready());
    return absl::OkStatus();
  }

  // Takes what has arrived, and sleeps for it where only that can give the rank work.
  void Await() {
    const bool can_go_on = CanGoOn(sequences_, exchange_, service_);
    if (!can_go_on) sleep_meter_.Sleep(env_.clock.Now(), inputs());
    loop_.RunOnce(can_go_on ? absl::ZeroDuration() : kIdleWait);
    sleep_meter_.Wake(env_.clock.Now());
    service_.ticks().Tick(!can_go_on);
  }

  int64_t inputs() const { return control_messages_ + exchange_.counters().arrivals; }
  void OnMessage(const v1::ControlMessage& message) {
    ++control_messages_;
    if (message.has_welcome()) {
      const absl::Status status =
          transport_.SetSelf(message.welcome().rank(), connection_->generation());
      if (!status.ok()) LOG_WARNING("no shared memory: {}", std::string(status.message()));
    }
    if (message.has_drain()) ends_ = told_to_drain_ = true;
    if (!service_.OnMessage(message)) sequences_.OnMessage(message);
  }

  void OnLink(cluster::ControlLink* link) {
    ++control_messages_;
    service_.Connect(link);
    sequences_.Connect(link);
  }

  // In the midst of a long operation, where the loop does not turn.
  void Interlude() {
    if (env_.clock.Now() < reported_at_ + cluster::kReportInterval) return;
    service_.ticks().Tick(false);
    Report();
  }

  void OnReportTime() {
    Report();
    loop_.At(reported_at_ + cluster::kReportInterval, [this] { OnReportTime(); });
  }

  void Report() {
    reported_at_ = env_.clock.Now();
    RankService::Gauges gauges{.computing = sequences_.busy(),
                               .loading = options_.attention() && !attention_,
                               .doorbell_rescues = transport_.doorbell_rescues(),
                               .resident_bytes = ResidentBytes(),
                               .asleep_with_work = sleep_meter_.asleep_with_work()};
    if (attention_) {
      gauges.place = attention_->transformer.place();
      gauges.replayed_rows = attention_->engine.replayed_rows();
    }
    service_.Report(gauges);
  }

  const WorkerOptions& options_;
  RankPlan& plan_;
  EpollLoop& loop_;
  const Env env_;
  cluster::PeerTransport& transport_;
  cluster::PeerNetwork network_{transport_};
  LoadedExperts slots_;
  MessageExchange exchange_;
  WorkerService sequences_;
  RankService service_;
  std::optional<Connection> connection_;
  std::optional<Attention> attention_;
  SleepMeter sleep_meter_;
  int64_t control_messages_ = 0;  // and links that came or went
  absl::Time reported_at_;
  bool ends_ = false;
  absl::Time leave_at_ = absl::InfinitePast();
  bool told_to_drain_ = false;
};

template <class AnyRank>
absl::Status RunUntilDrained(AnyRank& rank, const WorkerOptions& options, EpollLoop& loop,
                             int signals) {
  loop.Watch(signals, [&] {
    signalfd_siginfo signal;
    if (read(signals, &signal, sizeof signal) != sizeof signal) return;
    // Ctrl-C reaches the whole terminal; the parent decides what it means.
    if (options.exit_with_parent && signal.ssi_signo == SIGINT) return;
    rank.Drain();
  });
  return rank.Run();
}

absl::Status Serve(const WorkerOptions& options, RankPlan& plan,
                   std::optional<cluster::JoinToken> token, int signals) {
  EpollLoop loop(RealClock());
  const Env env{RealClock(), loop, RealRandom(), RealThreads()};
  ASSIGN_OR_RETURN(const cluster::PeerTransportOptions wires, WiresOf(options));
  ASSIGN_OR_RETURN(const std::unique_ptr<cluster::PeerTransport> transport,
                   cluster::PeerTransport::Create(wires, loop, RealClock(), RealRandom()));
  Rank rank(options, plan, std::move(token), *transport, loop, env);
  return RunUntilDrained(rank, options, loop, signals);
}

// `epochs`: of the ranks that it steps together with; null: it exchanges messages.
absl::Status Run(const WorkerOptions& options, int signals, EpochSource* epochs) {
  ASSIGN_OR_RETURN(RankPlan plan, MakeRankPlan(options));
  if (options.dry_run) {
    std::cout << plan.memory.ToString() << std::endl;
    return absl::OkStatus();
  }
  if (options.coordinator.empty()) return absl::InvalidArgumentError("--coordinator is missing");
  LOG_INFO("{}", plan.memory.ToString());
  std::optional<cluster::JoinToken> token;
  if (!options.join_token_file.empty()) {
    ASSIGN_OR_RETURN(token, cluster::JoinToken::ReadFile(options.join_token_file));
  }
  if (epochs == nullptr) return Serve(options, plan, std::move(token), signals);
  EpollLoop loop(RealClock());
  LockStepRank rank(options, plan, std::move(token), *epochs, loop,
                    {RealClock(), loop, RealRandom(), RealThreads()});
  return RunUntilDrained(rank, options, loop, signals);
}

// As one of the ranks of an epoch: what ends this one ends all.
absl::Status RunInLockStep(const WorkerOptions& options, int signals) {
  ASSIGN_OR_RETURN(const std::optional<int> card, ParseCard(options.device));
  ASSIGN_OR_RETURN(const std::unique_ptr<EpochSource> epochs,
                   StartEpochs(options.exchange, options.expert_ranks, card.value_or(0),
                               RealClock(), RealRandom(), RealThreads()));
  ASSIGN_OR_RETURN(const cluster::Collective* collective, epochs->collective());
  if (collective != nullptr) {
    InitLog("worker " + std::to_string(collective->rank()), options.log_level);
  }
  const absl::Status status = Run(LockStepOptions(options, epochs->size()), signals, epochs.get());
  if (!status.ok()) epochs->Abort(std::string(status.message()));
  return status;
}

}  // namespace
}  // namespace epic::worker

namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

}  // namespace

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
  const int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  absl::Status status =
      epic::ArmFailpoint(Environment("EPIC_FAILPOINT"), Environment("EPIC_FAILPOINT_ONCE"));
  if (status.ok()) {
    status = options.exchange == "messages" ? epic::worker::Run(options, signals, nullptr)
                                            : epic::worker::RunInLockStep(options, signals);
  }
  if (status.ok()) return 0;
  std::cerr << "error: " << status.message() << std::endl;
  return 1;
}
