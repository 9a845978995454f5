#include "worker/run.h"

#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "cluster/grpc/control_client.h"
#include "cluster/join_token.h"
#include "cluster/transport/peer_transport.h"
#include "kernels/threads/thread_pool.h"
#include "worker/device.h"
#include "worker/engine/transformer.h"
#include "worker/exchange/start_epochs.h"
#include "worker/experts/loaded_experts.h"
#include "worker/machine.h"
#include "worker/rank/loaded_attention.h"
#include "worker/rank/lock_step_policy.h"
#include "worker/rank/message_policy.h"
#include "worker/rank/rank.h"
#include "worker/rank_plan.h"

namespace epic::worker {
namespace {

// How long a rank that nobody supervises waits for the coordinator to move its experts. Longer than
// the 10 s after which a drain moves requests too (coordinator/world/world.h).
constexpr absl::Duration kLeaveTime = absl::Seconds(20);

// Everything that the functions below make a rank with.
struct Surroundings {
  const WorkerOptions& options;
  EpollLoop& loop;
  const Env env;
  const int signals;
};

absl::StatusOr<cluster::PeerTransportOptions> WiresOf(const WorkerOptions& options) {
  cluster::PeerTransportOptions wires{.host_name = HostName(), .run_dir = options.run_dir};
  if (options.transport == "shm") wires.wires = cluster::WireChoice::kShm;
  if (options.transport == "tcp") wires.wires = cluster::WireChoice::kTcp;
  // The last colon: an IPv6 address has colons of its own.
  const size_t colon = options.exchange_address.rfind(':');
  if (colon == std::string::npos ||
      !absl::SimpleAtoi(options.exchange_address.substr(colon + 1), &wires.listen_port)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--exchange-address: ", options.exchange_address, " is not HOST:PORT"));
  }
  wires.listen_host = options.exchange_address.substr(0, colon);
  // A rank that spins without a core of its own keeps another one from working.
  if (options.local_ranks <= kernels::ThreadPool::AvailableCores()) {
    wires.spin = cluster::kSpinMax;
  }
  wires.advertised_host = options.advertised_host;
  return wires;
}

absl::StatusOr<ControlDialer> DialerOf(const WorkerOptions& options, Env env) {
  if (options.coordinator.empty()) return absl::InvalidArgumentError("--coordinator is missing");
  // Read once: a later redial must not depend on the file.
  std::optional<cluster::JoinToken> token;
  if (!options.join_token_file.empty()) {
    ASSIGN_OR_RETURN(token, cluster::JoinToken::ReadFile(options.join_token_file));
  }
  return [env, address = options.coordinator, token](v1::ControlHello hello,
                                                     cluster::ControlLinkHandlers handlers) {
    return cluster::DialControl(env, address, std::move(hello), std::move(handlers), token);
  };
}

v1::WorkerIdentity IdentityOf(const WorkerOptions& options, const RankPlan& plan) {
  v1::WorkerIdentity identity = plan.identity();
  identity.set_attention(options.attention());
  identity.set_experts(options.experts());
  return identity;
}

// The identity of a rank that other ranks send rows to. It also says where they reach the rank.
v1::WorkerIdentity IdentityOf(const WorkerOptions& options, const RankPlan& plan,
                              const cluster::PeerTransport& transport) {
  v1::WorkerIdentity identity = IdentityOf(options, plan);
  identity.set_host(HostName());
  // Only where peers may come through shared memory.
  if (options.transport != "tcp") identity.set_run_dir(options.run_dir);
  identity.set_address(transport.address());
  return identity;
}

// Loads what attention needs; meanwhile the loop turns, so that the rank reports and hears.
absl::StatusOr<std::unique_ptr<LoadedAttention>> Load(const Surroundings& around,
                                                      const RankPlan& plan, Rank& rank,
                                                      int64_t bytes_to_load) {
  return LoadAttention(plan, around.env.clock, [&](int64_t bytes) {
    rank.ReportLoading(std::min(bytes, plan.weights.source_bytes), bytes_to_load);
    around.loop.RunOnce(absl::ZeroDuration());
  });
}

absl::Status RunUntilOver(const Surroundings& around, Rank& rank) {
  while (!rank.over()) {
    around.loop.RunOnce(rank.wait_max());
    rank.Turn();
  }
  return rank.status();
}

void DrainOnSignals(const Surroundings& around, Rank& rank) {
  around.loop.Watch(around.signals, [&around, &rank] {
    signalfd_siginfo signal;
    if (read(around.signals, &signal, sizeof signal) != sizeof signal) return;
    // Ctrl-C reaches the whole terminal; the parent decides what it means.
    if (around.options.exit_with_parent && signal.ssi_signo == SIGINT) return;
    rank.Drain();
  });
}

absl::Status RunByMessages(const Surroundings& around, const RankPlan& plan, ControlDialer dial) {
  const auto& [options, loop, env, signals] = around;
  ASSIGN_OR_RETURN(const cluster::PeerTransportOptions wires, WiresOf(options));
  ASSIGN_OR_RETURN(const std::unique_ptr<cluster::PeerTransport> transport,
                   cluster::PeerTransport::Create(wires, loop, env.clock, env.random));
  LoadedExperts slots(env.clock, plan.config, *plan.checkpoint, *plan.backend, plan.expert_slots,
                      plan.expert.source_bytes);
  MessagePolicy policy(plan.exchange_shape(), {}, env.clock, *transport, slots, options.experts());
  // Declared before the rank, which must not outlive what it serves.
  std::unique_ptr<LoadedAttention> attention;
  std::optional<Transformer> transformer;
  std::optional<Engine> engine;
  const RankHandlers handlers{
      .on_welcome =
          [&transport](int rank, uint64_t generation) {
            const absl::Status status = transport->SetSelf(rank, generation);
            if (!status.ok()) LOG_WARNING("no shared memory: {}", std::string(status.message()));
          },
      .add_gauges =
          [&transport](v1::RankReport& report) {
            report.set_doorbell_rescues(transport->doorbell_rescues());
            report.set_resident_bytes(ResidentBytes());
          }};
  // A supervisor starts another process at once, so a rank that has one does not wait until its
  // experts have moved.
  const bool alone = !options.exit_with_parent;
  // The rank dials before it loads: the coordinator then counts it and can tell how far it is.
  Rank rank(env, IdentityOf(options, plan, *transport), std::move(dial), policy,
            {.asks_to_leave = alone, .leave_time = alone ? kLeaveTime : absl::ZeroDuration()},
            handlers);
  plan.backend->SetInterlude([&rank] { rank.ReportProgress(); });
  const absl::Cleanup quiet = [&plan] { plan.backend->SetInterlude({}); };
  DrainOnSignals(around, rank);
  if (options.attention()) {
    const SchedulerLimits& limits = plan.limits.scheduler;
    ASSIGN_OR_RETURN(attention, Load(around, plan, rank, plan.weights.source_bytes));
    policy.set_base_bytes(plan.weights.source_bytes);
    transformer.emplace(*attention->model, *plan.backend, policy.exchange(), attention->pool,
                        limits.max_num_batched_tokens, limits.max_logit_rows);
    engine.emplace(plan.limits, *transformer, attention->pages);
    rank.Serve(*engine, *transformer, plan.ready());
  }
  return RunUntilOver(around, rank);
}

absl::Status RunEpochs(const Surroundings& around, const RankPlan& plan, ControlDialer dial,
                       EpochSource& epochs) {
  std::unique_ptr<LoadedAttention> attention;
  LockStepPolicy policy(plan, epochs, around.env.clock);
  // The other ranks decide with this one when it may end. Its sequences go on elsewhere at once: a
  // launcher whose world breaks asks it to end before it kills it.
  Rank rank(around.env, IdentityOf(around.options, plan), std::move(dial), policy,
            {.asks_to_leave = true, .leave_time = absl::ZeroDuration()},
            {.add_gauges = [](v1::RankReport& report) {
              report.set_resident_bytes(ResidentBytes());
            }});
  plan.backend->SetInterlude([&rank] { rank.ReportProgress(); });
  const absl::Cleanup quiet = [&plan] { plan.backend->SetInterlude({}); };
  DrainOnSignals(around, rank);
  ASSIGN_OR_RETURN(attention, Load(around, plan, rank, policy.bytes_to_load()));
  policy.Start(*attention);
  return RunUntilOver(around, rank);
}

// `epochs` brings together the ranks that this one steps with; null if it exchanges messages.
absl::Status Run(const Surroundings& around, EpochSource* epochs) {
  ASSIGN_OR_RETURN(const RankPlan plan, MakeRankPlan(around.options));
  if (around.options.dry_run) {
    std::cout << plan.memory.ToString() << std::endl;
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(ControlDialer dial, DialerOf(around.options, around.env));
  LOG_INFO("{}", plan.memory.ToString());
  return epochs == nullptr ? RunByMessages(around, plan, std::move(dial))
                           : RunEpochs(around, plan, std::move(dial), *epochs);
}

// Runs one rank of an epoch. What ends this rank ends the epoch for all of them.
absl::Status RunInLockStep(const WorkerOptions& options, EpollLoop& loop, Env env, int signals) {
  ASSIGN_OR_RETURN(const std::optional<int> card, ParseCard(options.device));
  ASSIGN_OR_RETURN(const std::unique_ptr<EpochSource> epochs,
                   StartEpochs(options.exchange, options.expert_ranks, card.value_or(0), env.clock,
                               env.random, env.threads));
  ASSIGN_OR_RETURN(const cluster::Collective* collective, epochs->collective());
  if (collective != nullptr) {
    InitLog(absl::StrCat("worker ", collective->rank()), options.log_level);
  }
  const WorkerOptions together = LockStepOptions(options, epochs->size());
  const absl::Status status = Run({together, loop, env, signals}, epochs.get());
  // The other ranks would wait for this one for ever.
  if (!status.ok()) epochs->Abort(std::string(status.message()));
  return status;
}

}  // namespace

absl::Status RunWorker(const WorkerOptions& options, EpollLoop& loop, Env env, int signals) {
  CHECK(&env.loop == &loop);
  return options.exchange == "messages" ? Run({options, loop, env, signals}, nullptr)
                                        : RunInLockStep(options, loop, env, signals);
}

}  // namespace epic::worker
