#include "tests/sim/world.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/core.h"
#include "tests/sim/control.h"
#include "tests/sim/network.h"
#include "tests/sim/process.h"

namespace epic::sim {
namespace {

using coordinator::Core;
using coordinator::FinishReason;

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
  int life = 0;         // of the process that runs, or ran last
  bool leaves = false;  // drained: not started again

  bool runs(int which) const { return process != nullptr && life == which; }
  int deaths = 0;
};

struct Client {
  RequestPlan plan;
  std::vector<int32_t> expected;
  std::shared_ptr<coordinator::RequestStream> stream;
  std::vector<int32_t> tokens;
  bool ended = false;
  bool gone = false;
};

class SimWorld {
 public:
  explicit SimWorld(const Scenario& scenario);
  ~SimWorld();
  Verdict Run();

 private:
  void Start(int seat);
  void PlanDial(int seat);
  void Dial(int seat, int life);
  // The process at the seat is gone; another is started after a while.
  void End(int seat, bool again);
  void Inflict(const FaultPlan& fault);
  void Submit(size_t client);
  void OnGrown(size_t client);
  void CheckEnd(Client& client, const coordinator::Slice& slice);

  void RunUntilQuiet();
  void JudgeQuiet();
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
  Core core_;
  std::map<int, Seat> seats_;
  std::vector<Client> clients_;
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
  return options;
}

SimWorld::SimWorld(const Scenario& scenario)
    : scenario_(scenario),
      dice_(scenario.seed ^ 0x5eed),
      random_(scenario.seed),
      network_(loop_, dice_.Next(), trace_),
      core_(Env{loop_, loop_, random_, RealThreads()}, OptionsOf(scenario), nullptr) {
  network_.set_delay_max(scenario.network_delay_max);
  for (size_t i = 0; i < scenario.seats.size(); ++i) {
    const int seat = static_cast<int>(i);
    seats_[seat].plan = scenario.seats[i];
    loop_.At(began_ + scenario.seats[i].starts, [this, seat] { Start(seat); });
  }
  for (const RequestPlan& plan : scenario.requests) {
    const size_t index = clients_.size();
    clients_.push_back({.plan = plan});
    clients_.back().expected =
        OracleTokens(plan.prompt, plan.sampling, plan.max_tokens, plan.stop_token);
    loop_.At(began_ + plan.at, [this, index] { Submit(index); });
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
  const ProcessOptions options{
      .seat = seat,
      .seed = dice_.Next(),
      .attention = at.plan.attention,
      .experts = at.plan.experts,
      .slots = at.plan.slots,
      .pages = at.plan.pages,
      .start_time = dice_.Between(absl::Milliseconds(1), absl::Milliseconds(80)),
      .load_time = scenario_.load_time,
      .slowness = at.plan.slowness};
  at.process = std::make_unique<Process>(
      loop_, network_, options,
      ProcessHandlers{.violation =
                          [this, seat](const std::string& what) {
                            Violation(absl::StrCat("seat ", seat, ": ", what));
                          },
                      .on_renew = [this, seat] { PlanDial(seat); },
                      .on_goodbye =
                          [this, seat, life = at.life] {
                            loop_.At(loop_.Now() + absl::Milliseconds(20), [this, seat, life] {
                              if (seats_.at(seat).runs(life)) End(seat, false);
                            });
                          }});
  PlanDial(seat);
}

void SimWorld::PlanDial(int seat) {
  const int life = seats_.at(seat).life;
  loop_.At(loop_.Now() + dice_.Between(absl::Milliseconds(1), absl::Milliseconds(20)),
           [this, seat, life] { Dial(seat, life); });
}

void SimWorld::Dial(int seat, int life) {
  Seat& at = seats_.at(seat);
  if (!at.runs(life)) return;
  Process* const process = at.process.get();
  at.control = std::make_shared<ControlPair>(loop_, dice_.Next(), trace_);
  auto taken = core_.AddWorker(process->Hello(), at.control->NewEnd(ControlPair::kCoordinator));
  if (!taken.ok()) {
    return Violation(absl::StrCat("refused: ", std::string(taken.status().message())));
  }
  at.control->SetHandlers(ControlPair::kCoordinator, *std::move(taken));
  cluster::ControlLinkHandlers handlers =
      process->Connect(at.control->NewEnd(ControlPair::kWorker));
  // A launcher ends what the world has put out and what does not go by itself.
  handlers.on_down = [this, seat, life,
                      told = std::move(handlers.on_down)](const absl::Status& why) {
    told(why);
    const auto stuck = [this, seat, life] {
      return seats_.at(seat).runs(life) && seats_.at(seat).process->hangs();
    };
    if (!stuck()) return;
    loop_.At(loop_.Now() + absl::Seconds(1), [this, seat, stuck] {
      if (stuck()) End(seat, true);
    });
  };
  at.control->SetHandlers(ControlPair::kWorker, std::move(handlers));
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
      at.process->SlowDown(10);
      loop_.At(loop_.Now() + fault.lasts, [this, seat = fault.seat] {
        if (Process* process = seats_.at(seat).process.get()) process->SlowDown(1);
      });
      return;
    case FaultKind::kHoldControl:
      if (at.control != nullptr) at.control->Hold(fault.lasts);
      return;
    case FaultKind::kDrain:
      if (rank >= 0) core_.Drain(rank, false, [](const absl::Status&) {});
  }
}

void SimWorld::Submit(size_t index) {
  Client& client = clients_[index];
  coordinator::Request request;
  request.id = absl::StrCat("request-", index);
  request.prompt = client.plan.prompt;
  request.sampling.temperature = client.plan.sampling.temperature;
  request.sampling.seed = client.plan.sampling.seed;
  request.sampling.repetition_penalty = client.plan.sampling.repetition_penalty;
  request.max_tokens = client.plan.max_tokens;
  if (client.plan.stop_token >= 0) request.stop_token_ids = {client.plan.stop_token};
  auto stream = core_.Submit(std::move(request));
  if (!stream.ok()) {  // not accepted: the client tries again
    loop_.At(loop_.Now() + absl::Milliseconds(50), [this, index] { Submit(index); });
    return;
  }
  client.stream = *std::move(stream);
  client.stream->SetListener([this, index] { OnGrown(index); });
  if (!client.plan.cancelled) return;
  loop_.At(loop_.Now() + absl::Milliseconds(120), [this, index] {
    clients_[index].gone = true;
    clients_[index].stream.reset();
  });
}

void SimWorld::OnGrown(size_t index) {
  Client& client = clients_[index];
  if (client.stream == nullptr) return;
  const coordinator::Slice slice = client.stream->Read(0, static_cast<int>(client.tokens.size()));
  if (client.ended && !slice.tokens.empty()) {
    Violation(absl::StrCat("request ", index, " has more tokens after its end"));
  }
  for (const coordinator::JournalToken& token : slice.tokens) {
    const size_t position = client.tokens.size();
    client.tokens.push_back(token.token);
    trace_.Add(index * 1000 + static_cast<uint64_t>(token.token));
    ++verdict_.tokens;
    if (position < client.expected.size() && client.expected[position] == token.token) continue;
    Violation(absl::StrCat("request ", index, ", position ", position, ": token ", token.token,
                           ", one rank alone has ",
                           position < client.expected.size() ? client.expected[position] : -1));
  }
  if (slice.finish == FinishReason::kNone || client.ended) return;
  client.ended = true;
  ++verdict_.requests_ended;
  CheckEnd(client, slice);
}

void SimWorld::CheckEnd(Client& client, const coordinator::Slice& slice) {
  if (slice.finish == FinishReason::kError) {
    // protocol.md §5: what seems to kill a rank alone twice is quarantined. Machines that die at
    // random may make it seem so.
    const bool excused = std::ranges::any_of(seats_, [](const auto& seat) {
      return seat.second.plan.attention && seat.second.deaths > 0;
    });
    if (excused && absl::IsInternal(slice.error)) return;
    return Violation(absl::StrCat("a request failed: ", std::string(slice.error.message())));
  }
  if (client.tokens != client.expected) {
    Violation(absl::StrCat("a request ended with ", client.tokens.size(), " tokens of ",
                           client.expected.size()));
  }
  const bool stopped = client.expected.back() == client.plan.stop_token;
  if (slice.finish != (stopped ? FinishReason::kStop : FinishReason::kLength)) {
    Violation(absl::StrCat("a request ended for reason ", static_cast<int>(slice.finish)));
  }
}

bool SimWorld::AllEnded() const {
  return std::ranges::all_of(clients_,
                             [](const Client& client) { return client.ended || client.gone; });
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
  for (size_t i = 0; i < clients_.size(); ++i) {
    const Client& client = clients_[i];
    if (client.ended || client.gone) continue;
    Violation(absl::StrCat("request ", i, " has not ended: ", client.tokens.size(), " of ",
                           client.expected.size(), " tokens; ",
                           client.stream == nullptr ? core_.status().reason : "accepted"));
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
    if (each.process == nullptr || !AllEnded()) continue;
    const Process& process = *each.process;
    if (process.pages().used_count() != 0 || process.exchange().serving() ||
        process.exchange().counters().outstanding_dispatches != 0) {
      Violation(absl::StrCat("seat ", seat, ": ", process.pages().used_count(),
                             " pages are leased, ",
                             process.exchange().counters().outstanding_dispatches,
                             " dispatches outstanding, at rest"));
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
  for (const coordinator::Event& event : core_.events().Read(1)) {
    absl::StrAppend(&verdict_.log, "  ", absl::FormatDuration(event.time - began_), " ", event.kind,
                    " rank ", event.rank, ": ", event.text, "\n");
  }
  return std::move(verdict_);
}

}  // namespace

Verdict Run(const Scenario& scenario) { return SimWorld(scenario).Run(); }

}  // namespace epic::sim
