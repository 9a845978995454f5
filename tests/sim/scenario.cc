#include "tests/sim/scenario.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/sim/dice.h"
#include "tests/sim/toy.h"

namespace epic::sim {
namespace {

constexpr absl::Duration kFaultsBegin = absl::Milliseconds(150);

// How often each fault is drawn, and how many at most.
struct Weather {
  std::string name;
  int faults_min = 0;
  int faults_max = 0;
  std::vector<FaultKind> kinds;
  int joins_max = 0;
  absl::Duration lasts = absl::Milliseconds(900);  // faults begin within
  bool liveness = true;
  bool blameless = false;
  bool impatient = false;  // requests have deadlines, clients leave or cancel
};

constexpr std::initializer_list<FaultKind> kAnything = {
    FaultKind::kCrash, FaultKind::kHang,        FaultKind::kCut,   FaultKind::kBreak,
    FaultKind::kSlow,  FaultKind::kHoldControl, FaultKind::kStall, FaultKind::kDrain,
    FaultKind::kFence, FaultKind::kFreeze,      FaultKind::kTerminate};

const std::vector<Weather>& Weathers() {
  using enum FaultKind;
  static const std::vector<Weather> weathers = {
      {.name = "calm"},
      {.name = "crash", .faults_min = 1, .faults_max = 3, .kinds = {kCrash}},
      {.name = "hang", .faults_min = 1, .faults_max = 2, .kinds = {kHang}},
      {.name = "cut", .faults_min = 1, .faults_max = 3, .kinds = {kCut}},
      {.name = "break", .faults_min = 3, .faults_max = 12, .kinds = {kBreak, kBreak, kHang}},
      {.name = "slow", .faults_min = 1, .faults_max = 2, .kinds = {kSlow, kHoldControl}},
      {.name = "join",
       .faults_min = 0,
       .faults_max = 3,
       .kinds = {kCrash, kHoldControl},
       .joins_max = 2},
      {.name = "drain",
       .faults_min = 1,
       .faults_max = 3,
       .kinds = {kDrain, kHoldControl},
       .joins_max = 1},
      {.name = "restart",
       .faults_min = 1,
       .faults_max = 4,
       .kinds = {kTerminate, kTerminate, kDrain, kHoldControl},
       .joins_max = 1},
      {.name = "patience",
       .faults_min = 1,
       .faults_max = 5,
       .kinds = {kSlow, kStall},
       .joins_max = 1,
       .blameless = true},
      {.name = "impatience",
       .faults_min = 1,
       .faults_max = 4,
       .kinds = {kCrash, kCrash, kHang, kSlow, kStall},
       .impatient = true},
      {.name = "operators",
       .faults_min = 2,
       .faults_max = 6,
       .kinds = {kFence, kFreeze, kFreeze, kDrain, kCrash, kHang},
       .joins_max = 1},
      {.name = "storm",
       .faults_min = 3,
       .faults_max = 8,
       .kinds = kAnything,
       .joins_max = 2,
       .impatient = true},
      {.name = "tempest",
       .faults_min = 10,
       .faults_max = 30,
       .kinds = {kCrash, kHang, kCut, kBreak, kSlow, kHoldControl, kStall},
       .joins_max = 1,
       .lasts = absl::Seconds(3),
       .liveness = false},
  };
  return weathers;
}

const Weather& Hundreds() {
  static const Weather hundreds = {.name = "hundreds",
                                   .faults_min = 8,
                                   .faults_max = 30,
                                   .kinds = kAnything,
                                   .joins_max = 12,
                                   .impatient = true};
  return hundreds;
}

// How many ranks of each kind, and how many share a machine.
struct Shape {
  int attention, experts, both;
  int machine = 1;
  int expert_count = 6;
};
constexpr Shape kSmall[] = {{1, 2, 0}, {2, 2, 0}, {2, 3, 0}, {1, 3, 0},
                            {0, 0, 2}, {0, 0, 3}, {1, 1, 1}, {3, 5, 0}};
constexpr Shape kLarge[] = {
    {64, 192, 0, 8, 256}, {8, 300, 0, 4, 384}, {0, 0, 120, 8, 256}, {32, 80, 40, 8, 160}};

bool large(const Weather& weather) { return &weather == &Hundreds(); }

void AddSeats(Dice& dice, const Weather& weather, Scenario& scenario) {
  const Shape shape = large(weather) ? kLarge[dice.Between(0, 3)] : kSmall[dice.Between(0, 7)];
  const int expert_ranks = shape.experts + shape.both;
  const int total = shape.expert_count * (kToyLayers - kFirstExpertLayer);
  scenario.expert_count = shape.expert_count;
  scenario.replicas_max = dice.Between(1, 2);
  // Sometimes the rest can hold what a lost rank held, sometimes a replacement is needed.
  const int spare = dice.Between(0, large(weather) ? expert_ranks / 6 : 1);
  const int holders = std::max(1, expert_ranks - spare);
  const int slots = (total * scenario.replicas_max + holders - 1) / holders;
  const auto seat = [&](bool attention, bool experts, absl::Duration starts) {
    const int machine = static_cast<int>(scenario.seats.size()) / shape.machine;
    scenario.seats.push_back({.attention = attention,
                              .experts = experts,
                              .slots = experts ? std::min(slots, total) : 0,
                              .pages = attention ? dice.Between(5, 8) : 0,
                              .slowness = dice.Once(6) ? 4.0 : 1.0,
                              .starts = starts,
                              .machine = machine});
  };
  for (int i = 0; i < shape.attention; ++i) seat(true, false, absl::ZeroDuration());
  for (int i = 0; i < shape.experts; ++i) seat(false, true, absl::ZeroDuration());
  for (int i = 0; i < shape.both; ++i) seat(true, true, absl::ZeroDuration());
  scenario.expect_ranks = static_cast<int>(scenario.seats.size());
  for (int i = dice.Between(0, weather.joins_max); i > 0; --i) {
    const bool attention = dice.Once(2);
    seat(attention, !attention || shape.both > 0,
         kFaultsBegin + dice.Between(absl::ZeroDuration(), weather.lasts));
  }
}

void AddImpatience(Dice& dice, RequestPlan& request) {
  request.patience = dice.Once(2) ? Patience::kLeaves : Patience::kCancels;
  if (dice.Once(2)) request.patience = Patience::kWaits;
  request.waits = dice.Between(absl::ZeroDuration(), absl::Milliseconds(600));
  if (dice.Once(2)) {
    request.deadline = dice.Between(absl::Milliseconds(1), absl::Milliseconds(1500));
  }
}

void AddRequests(Dice& dice, const Weather& weather, Scenario& scenario) {
  // Long answers at once, so that pages run out; else a bit of everything.
  const bool crowd = dice.Once(6);
  const int count = large(weather) ? dice.Between(60, 160) : dice.Between(3, crowd ? 5 : 10);
  for (int i = count; i > 0; --i) {
    RequestPlan request;
    request.at = crowd ? dice.Between(absl::Milliseconds(100), absl::Milliseconds(300))
                       : dice.Between(absl::ZeroDuration(), weather.lasts);
    const int length = !crowd && dice.Once(3) ? dice.Between(50, 140) : dice.Between(1, 20);
    for (int j = 0; j < length; ++j) request.prompt.push_back(dice.Between(0, kVocab - 1));
    request.sampling.temperature = dice.Once(2) ? 0.0f : 0.8f;
    request.sampling.seed = dice.Next();
    request.sampling.repetition_penalty = dice.Once(4) ? 1.2f : 1.0f;
    request.max_tokens = crowd ? dice.Between(120, 160) : dice.Between(1, 50);
    request.stop_token = !crowd && dice.Once(3) ? dice.Between(0, kVocab - 1) : -1;
    if (dice.Once(12)) request.patience = Patience::kLeaves;
    request.waits = absl::Milliseconds(120);
    if (weather.impatient && dice.Once(2)) AddImpatience(dice, request);
    scenario.requests.push_back(std::move(request));
  }
}

FaultPlan DrawFault(Dice& dice, const Weather& weather, const Scenario& scenario) {
  const int seats = static_cast<int>(scenario.seats.size());
  FaultPlan fault;
  fault.at = kFaultsBegin + dice.Between(absl::ZeroDuration(), weather.lasts);
  fault.kind = weather.kinds[dice.Between(0, static_cast<int>(weather.kinds.size()) - 1)];
  fault.seat = dice.Between(0, seats - 1);
  fault.other = (fault.seat + dice.Between(1, std::max(1, seats - 1))) % seats;
  switch (fault.kind) {
    case FaultKind::kHang:
      fault.lasts = dice.Once(2) ? dice.Between(absl::Milliseconds(20), absl::Milliseconds(250))
                                 : dice.Between(absl::Milliseconds(300), absl::Seconds(3));
      if (dice.Once(3)) fault.lasts = absl::Hours(1);
      break;
    case FaultKind::kCut:
      fault.lasts = dice.Once(2) ? dice.Between(absl::Milliseconds(20), absl::Milliseconds(600))
                                 : dice.Between(absl::Milliseconds(700), absl::Seconds(3));
      break;
    case FaultKind::kSlow:
      fault.times = dice.Between(5, 50);
      [[fallthrough]];
    case FaultKind::kHoldControl:
    case FaultKind::kFreeze:
    case FaultKind::kStall:
      fault.lasts = dice.Between(absl::Milliseconds(50), absl::Milliseconds(1500));
      break;
    default:
      break;
  }
  return fault;
}

// A machine ends with all its ranks.
void CrashNeighbours(Dice& dice, const FaultPlan& fault, Scenario& scenario) {
  const int machine = scenario.seats[fault.seat].machine;
  FaultPlan next = fault;
  for (size_t seat = 0; seat < scenario.seats.size(); ++seat) {
    next.seat = static_cast<int>(seat);
    if (scenario.seats[seat].machine != machine || next.seat == fault.seat) continue;
    next.at = fault.at + dice.Between(absl::ZeroDuration(), absl::Milliseconds(2));
    scenario.faults.push_back(next);
  }
}

const Weather& WeatherOf(uint64_t seed, const std::string& name) {
  const std::vector<Weather>& weathers = Weathers();
  const auto named = std::ranges::find(weathers, name, &Weather::name);
  if (named != weathers.end()) return *named;
  const bool by_seed = name.empty() && seed % kLargeEvery == kLargeEvery / 2;
  return by_seed || name == Hundreds().name ? Hundreds() : weathers[seed % weathers.size()];
}

}  // namespace

std::vector<std::string> ScenarioNames() {
  std::vector<std::string> names;
  for (const Weather& weather : Weathers()) names.push_back(weather.name);
  names.push_back(Hundreds().name);
  return names;
}

Scenario MakeScenario(uint64_t seed, const std::string& name) {
  const Weather& weather = WeatherOf(seed, name);
  Dice dice(seed);
  Scenario scenario{.name = weather.name,
                    .seed = seed,
                    .liveness = weather.liveness,
                    .blameless = weather.blameless};
  scenario.network_delay_max = dice.Once(3) ? absl::Milliseconds(5) : absl::Microseconds(400);
  scenario.load_time = dice.Between(absl::Microseconds(100), absl::Milliseconds(20));
  AddSeats(dice, weather, scenario);
  AddRequests(dice, weather, scenario);
  if (weather.kinds.empty()) return scenario;
  for (int i = dice.Between(weather.faults_min, weather.faults_max); i > 0; --i) {
    const FaultPlan fault = DrawFault(dice, weather, scenario);
    scenario.faults.push_back(fault);
    if (large(weather) && fault.kind == FaultKind::kCrash && dice.Once(2)) {
      CrashNeighbours(dice, fault, scenario);
    }
  }
  return scenario;
}

std::string ToString(const Scenario& scenario) {
  static const std::map<FaultKind, std::string> kNames = {
      {FaultKind::kCrash, "crash"},   {FaultKind::kHang, "hang"},
      {FaultKind::kCut, "cut"},       {FaultKind::kBreak, "break"},
      {FaultKind::kSlow, "slow"},     {FaultKind::kHoldControl, "hold control"},
      {FaultKind::kDrain, "drain"},   {FaultKind::kFence, "fence"},
      {FaultKind::kFreeze, "freeze"}, {FaultKind::kStall, "stall"},
      {FaultKind::kTerminate, "terminate"}};
  std::string text = absl::StrCat("scenario ", scenario.name, ", seed ", scenario.seed, ", up to ",
                                  scenario.replicas_max, " replicas\n");
  for (size_t i = 0; i < scenario.seats.size(); ++i) {
    const SeatPlan& seat = scenario.seats[i];
    absl::StrAppend(&text, "  seat ", i, ": ", seat.attention ? "attention " : "",
                    seat.experts ? "experts " : "", "slots ", seat.slots, " pages ", seat.pages,
                    " from ", absl::FormatDuration(seat.starts), "\n");
  }
  for (const RequestPlan& request : scenario.requests) {
    absl::StrAppend(&text, "  request at ", absl::FormatDuration(request.at), ": ",
                    request.prompt.size(), " + ", request.max_tokens, " tokens",
                    request.patience == Patience::kWaits
                        ? ""
                        : absl::StrCat(request.patience == Patience::kLeaves ? ", leaves after "
                                                                             : ", cancels after ",
                                       absl::FormatDuration(request.waits)),
                    request.deadline == absl::InfiniteDuration()
                        ? ""
                        : absl::StrCat(", has ", absl::FormatDuration(request.deadline)),
                    "\n");
  }
  for (const FaultPlan& fault : scenario.faults) {
    absl::StrAppend(&text, "  ", absl::FormatDuration(fault.at), ": ", kNames.at(fault.kind),
                    " seat ", fault.seat, " (other ", fault.other, ") for ",
                    absl::FormatDuration(fault.lasts), "\n");
  }
  return text;
}

}  // namespace epic::sim
