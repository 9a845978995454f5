#include "tests/sim/world.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/core.h"
#include "tests/sim/client.h"
#include "tests/sim/control.h"
#include "tests/sim/network.h"
#include "tests/sim/process.h"
#include "tests/sim/stalling_loop.h"

namespace epic::sim {
namespace {

using coordinator::Core;

// After the last fault everything must have ended within so long: revocations, replacements and
// drains take seconds; the rest is work.
constexpr absl::Duration kPatience = absl::Seconds(60);
// A hang may last until somebody ends it.
constexpr absl::Duration kFaultMax = absl::Seconds(3);
constexpr absl::Duration kSettle = absl::Seconds(1);
constexpr absl::Duration kStep = absl::Milliseconds(20);
constexpr size_t kViolationsMax = 20;
// Of a run that goes round in circles.
constexpr int64_t kEventsMax = 3'000'000;

struct Seat {
  SeatPlan plan;
  std::unique_ptr<Process> process;
  std::shared_ptr<ControlPair> control;
  int life = 0;           // of the process that runs, or ran last
  bool leaves = false;    // drained: not started again
  bool replaced = false;  // told to end, as in a rolling restart: started again

  bool runs(int which) const { return process != nullptr && life == which; }
  int deaths = 0;
};

class SimWorld {
 public:
  explicit SimWorld(const Scenario& scenario);
  ~SimWorld();
  Verdict Run();

 private:
  void Start(int seat);
  std::unique_ptr<cluster::ControlLink> Dial(int seat, Loop& worker, v1::ControlHello hello,
                                             cluster::ControlLinkHandlers handlers);
  void TakeHello(ControlPair& pair, const v1::ControlHello& hello);
  void EndIfStuck(int seat, int life);
  // The process at the seat is gone; another is started after a while.
  void End(int seat, bool again);
  void Inflict(const FaultPlan& fault);
  void Freeze(absl::Duration lasts);
  // Whether an attention rank has died by itself.
  bool DeathsOfAttention() const;
  void RunUntilQuiet();
  void JudgeQuiet();
  void JudgeLosses();
  void Count(const Process& process);
  bool AllEnded() const;
  void Violation(const std::string& what);

  const Scenario& scenario_;
  Dice dice_;
  SimLoop loop_;
  const absl::Time began_ = loop_.Now();
  Trace trace_;
  SeededRandom random_;
  SimNetwork network_;
  StallingLoop coordinator_;
  Core core_;
  std::map<int, Seat> seats_;
  std::vector<std::unique_ptr<Client>> clients_;
  int freezes_ = 0;  // that hold
  std::optional<absl::Time> frozen_at_;
  std::vector<std::pair<absl::Time, absl::Time>> frozen_;  // when nobody was to be revoked
  std::set<int> fenced_;                                   // ranks that operators put out
  Verdict verdict_;
};

coordinator::CoreOptions OptionsOf(const Scenario& scenario) {
  coordinator::CoreOptions options;
  options.names = {"toy"};
  options.vocab_size = kVocab;
  options.world.term = 1;
  options.world.expect_ranks = scenario.expect_ranks;
  options.world.replicas_max = scenario.replicas_max;
  options.world.drain_move_after = absl::Milliseconds(500);
  options.world.pair_secret = std::string(32, 's');
  return options;
}

SimWorld::SimWorld(const Scenario& scenario)
    : scenario_(scenario),
      dice_(scenario.seed ^ 0x5eed),
      random_(scenario.seed),
      network_(loop_, dice_.Next(), trace_),
      coordinator_(loop_),
      core_(Env{loop_, coordinator_, random_, RealThreads()}, OptionsOf(scenario), nullptr) {
  network_.set_delay_max(scenario.network_delay_max);
  for (size_t i = 0; i < scenario.seats.size(); ++i) {
    const int seat = static_cast<int>(i);
    seats_[seat].plan = scenario.seats[i];
    loop_.At(began_ + scenario.seats[i].starts, [this, seat] { Start(seat); });
  }
  absl::Duration stalled;
  for (const FaultPlan& fault : scenario.faults) {
    if (fault.kind == FaultKind::kStall) stalled += fault.lasts;
  }
  for (const RequestPlan& plan : scenario.requests) {
    const int number = static_cast<int>(clients_.size());
    clients_.push_back(std::make_unique<Client>(
        loop_, core_, trace_, number, plan, scenario.expert_count, stalled,
        ClientHandlers{.violation = [this](const std::string& what) { Violation(what); },
                       .excused = [this] { return DeathsOfAttention(); }}));
    loop_.At(began_ + plan.at, [client = clients_.back().get()] { client->Submit(); });
  }
  for (const FaultPlan& fault : scenario.faults) {
    loop_.At(began_ + fault.at, [this, fault] { Inflict(fault); });
  }
}

SimWorld::~SimWorld() {
  for (auto& [seat, each] : seats_) each.process.reset();
  clients_.clear();
}

void SimWorld::Violation(const std::string& what) {
  if (verdict_.violations.size() >= kViolationsMax) return;
  verdict_.violations.push_back(
      absl::StrCat("at ", absl::FormatDuration(loop_.Now() - began_), ": ", what));
}

void SimWorld::Start(int seat) {
  Seat& at = seats_.at(seat);
  ++at.life;
  at.replaced = false;
  const ProcessOptions options{
      .seat = seat,
      .seed = dice_.Next(),
      .attention = at.plan.attention,
      .experts = at.plan.experts,
      .machine = at.plan.machine,
      .expert_count = scenario_.expert_count,
      .slots = at.plan.slots,
      .pages = at.plan.pages,
      .start_time = dice_.Between(absl::Milliseconds(1), absl::Milliseconds(80)),
      .load_time = scenario_.load_time,
      .slowness = at.plan.slowness};
  at.process = std::make_unique<Process>(
      loop_, network_, options,
      ProcessHandlers{.dial =
                          [this, seat](Loop& worker, v1::ControlHello hello,
                                       cluster::ControlLinkHandlers handlers) {
                            return Dial(seat, worker, std::move(hello), std::move(handlers));
                          },
                      .violation =
                          [this, seat](const std::string& what) {
                            Violation(absl::StrCat("seat ", seat, ": ", what));
                          },
                      .on_end =
                          [this, seat, life = at.life] {
                            loop_.At(loop_.Now() + absl::Milliseconds(20), [this, seat, life] {
                              Seat& at = seats_.at(seat);
                              if (at.runs(life)) End(seat, at.replaced);
                            });
                          }});
}

std::unique_ptr<cluster::ControlLink> SimWorld::Dial(int seat, Loop& worker, v1::ControlHello hello,
                                                     cluster::ControlLinkHandlers handlers) {
  Seat& at = seats_.at(seat);
  auto pair =
      std::make_shared<ControlPair>(loop_, coordinator_, worker, dice_.Next(), trace_);
  at.control = pair;
  pair->SetHandlers(ControlPair::kWorker, std::move(handlers));
  pair->set_on_worker_down([this, seat, life = at.life] { EndIfStuck(seat, life); });
  coordinator_.At(loop_.Now() + dice_.Between(absl::Milliseconds(1), absl::Milliseconds(20)),
                  [this, pair, hello = std::move(hello)] { TakeHello(*pair, hello); });
  return pair->NewEnd(ControlPair::kWorker);
}

void SimWorld::TakeHello(ControlPair& pair, const v1::ControlHello& hello) {
  if (!pair.alive(ControlPair::kWorker)) return;
  auto taken = core_.AddWorker(hello, pair.NewEnd(ControlPair::kCoordinator));
  if (!taken.ok()) {
    return Violation(absl::StrCat("refused: ", std::string(taken.status().message())));
  }
  pair.SetHandlers(ControlPair::kCoordinator, *std::move(taken));
}

// A launcher ends what the world has put out and what does not go by itself.
void SimWorld::EndIfStuck(int seat, int life) {
  const auto stuck = [this, seat, life] {
    return seats_.at(seat).runs(life) && seats_.at(seat).process->hangs();
  };
  if (!stuck()) return;
  loop_.At(loop_.Now() + absl::Seconds(1), [this, seat, stuck] {
    if (stuck()) End(seat, true);
  });
}

void SimWorld::End(int seat, bool again) {
  Seat& at = seats_.at(seat);
  if (at.process == nullptr) return;
  Count(*at.process);
  at.process.reset();
  at.control.reset();
  at.leaves = at.leaves || !again;
  if (at.leaves) return;
  loop_.At(loop_.Now() + dice_.Between(absl::Milliseconds(50), absl::Milliseconds(800)),
           [this, seat] {
             if (seats_.at(seat).process == nullptr) Start(seat);
           });
}

void SimWorld::Inflict(const FaultPlan& fault) {
  if (fault.kind == FaultKind::kStall) return coordinator_.Stall(fault.lasts);
  if (fault.kind == FaultKind::kFreeze) return Freeze(fault.lasts);
  Seat& at = seats_.at(fault.seat);
  if (at.process == nullptr) return;
  const int rank = at.process->rank();
  switch (fault.kind) {
    case FaultKind::kCrash:
      ++at.deaths;
      return End(fault.seat, true);
    case FaultKind::kHang:
      ++at.deaths;
      return at.process->Hang(fault.lasts);
    case FaultKind::kCut:
      return network_.Cut(fault.seat, fault.other, fault.lasts);
    case FaultKind::kBreak:
      return network_.Break(fault.seat, fault.other);
    case FaultKind::kSlow:
      at.process->SlowDown(fault.times);
      loop_.At(loop_.Now() + fault.lasts, [this, seat = fault.seat] {
        if (Process* process = seats_.at(seat).process.get()) process->SlowDown(1);
      });
      return;
    case FaultKind::kHoldControl:
      if (at.control != nullptr) at.control->Hold(fault.lasts);
      return;
    case FaultKind::kTerminate:
      at.replaced = true;
      return at.process->Terminate();
    case FaultKind::kDrain:
      if (rank >= 0) core_.Drain(rank, false, [](const absl::Status&) {});
      return;
    case FaultKind::kFence:
      fenced_.insert(rank);
      if (rank >= 0) core_.Fence(rank, [](const absl::Status&) {});
      return;
    case FaultKind::kFreeze:
    case FaultKind::kStall:
      return;
  }
}

void SimWorld::Freeze(absl::Duration lasts) {
  if (freezes_++ == 0) {
    core_.Freeze(true, [this](const absl::Status&) { frozen_at_ = loop_.Now(); });
  }
  loop_.At(loop_.Now() + lasts, [this] {
    if (--freezes_ > 0) return;
    core_.Freeze(false,
                 [this](const absl::Status&) { frozen_.emplace_back(*frozen_at_, loop_.Now()); });
  });
}

bool SimWorld::DeathsOfAttention() const {
  return std::ranges::any_of(seats_, [](const auto& seat) {
    return seat.second.plan.attention && seat.second.deaths > 0;
  });
}

bool SimWorld::AllEnded() const {
  return std::ranges::all_of(clients_, [](const auto& client) { return client->over(); });
}

void SimWorld::RunUntilQuiet() {
  absl::Time calm = began_;
  for (const FaultPlan& fault : scenario_.faults) {
    calm = std::max(calm, began_ + fault.at + std::min(fault.lasts, kFaultMax));
  }
  for (const RequestPlan& request : scenario_.requests) calm = std::max(calm, began_ + request.at);
  const absl::Time end = calm + (scenario_.liveness ? kPatience : absl::ZeroDuration());
  while (loop_.Now() < end && trace_.count() < kEventsMax) {
    if (loop_.Now() >= calm && AllEnded()) break;
    loop_.Advance(kStep);
  }
  if (trace_.count() >= kEventsMax) Violation("it goes round in circles");
  if (!scenario_.liveness) return;
  for (const auto& client : clients_) {
    if (!client->over()) Violation(client->Standing());
  }
  loop_.Advance(kSettle);
  JudgeQuiet();
}

// Nothing is left of what has ended.
void SimWorld::JudgeQuiet() {
  if (core_.active_requests() != 0) {
    Violation(absl::StrCat(core_.active_requests(), " requests are still active"));
  }
  for (const auto& [seat, each] : seats_) {
    if (each.process == nullptr || !AllEnded() || each.process->hangs()) continue;
    const Process& process = *each.process;
    if (process.pages().used_count() != 0 || process.exchange().serving() ||
        process.exchange().gauges().outstanding_dispatches != 0) {
      Violation(absl::StrCat(
          "seat ", seat, ": ", process.pages().used_count(), " pages are leased, ",
          process.exchange().gauges().outstanding_dispatches, " dispatches outstanding, at rest"));
    }
  }
}

// Nobody is lost for nothing, and while all is frozen nobody is revoked but by an operator.
void SimWorld::JudgeLosses() {
  if (scenario_.blameless && verdict_.ranks_lost > 0) {
    Violation(absl::StrCat(verdict_.ranks_lost, " ranks were lost, and nothing was wrong"));
  }
  for (const coordinator::Event& event : core_.events().Read(1)) {
    if (event.kind != coordinator::EventKind::kRevoke || fenced_.contains(event.rank)) continue;
    for (const auto& [from, to] : frozen_) {
      if (event.time <= from || event.time >= to) continue;
      Violation(absl::StrCat("rank ", event.rank, " was revoked in a freeze: ", event.text));
    }
  }
}

void SimWorld::Count(const Process& process) {
  verdict_.dispatches_lost += process.exchange().counters().dispatches_lost;
  verdict_.not_here += process.exchange().served().refused_not_here;
  verdict_.preemptions += process.engine().scheduler().preemptions();
  if (absl::Status status = process.pages().CheckIntegrity(); !status.ok()) {
    Violation(std::string(status.message()));
  }
}

Verdict SimWorld::Run() {
  RunUntilQuiet();
  for (const auto& [seat, each] : seats_) {
    if (each.process != nullptr) Count(*each.process);
  }
  const coordinator::MetricsSnapshot metrics = core_.metrics();
  if (metrics.replay_mismatches != 0) {
    Violation(absl::StrCat(metrics.replay_mismatches, " tokens differ from those before"));
  }
  verdict_.trace = trace_.hash();
  verdict_.events = trace_.count();
  verdict_.resubmissions = metrics.resubmissions;
  verdict_.ranks_lost = metrics.workers_lost;
  verdict_.quarantined = metrics.quarantined;
  for (const auto& client : clients_) {
    verdict_.tokens += client->token_count();
    verdict_.requests_ended += client->over() ? 1 : 0;
  }
  JudgeLosses();
  for (const coordinator::Event& event : core_.events().Read(1)) {
    absl::StrAppend(&verdict_.log, "  ", absl::FormatDuration(event.time - began_), " ",
                    std::string(NameOf(event.kind)), " rank ", event.rank, ": ", event.text, "\n");
  }
  return std::move(verdict_);
}

}  // namespace

Verdict Run(const Scenario& scenario) { return SimWorld(scenario).Run(); }

}  // namespace epic::sim
