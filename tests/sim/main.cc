// sim: runs seeds of simulated worlds. Every seed runs twice, and both runs must be the same.
//
//   sim --from 1 --seeds 1000          # all scenarios, in turn
//   sim --from 4711 --seeds 1 --verbose
#include <CLI/CLI.hpp>
#include <iostream>

#include "base/log.h"
#include "tests/sim/world.h"

namespace epic::sim {
namespace {

struct Options {
  uint64_t from = 1;
  int seeds = 1000;
  std::string scenario;
  bool verbose = false;
};

void Add(const Verdict& from, Verdict& to) {
  to.events += from.events;
  to.tokens += from.tokens;
  to.requests_ended += from.requests_ended;
  to.resubmissions += from.resubmissions;
  to.ranks_lost += from.ranks_lost;
  to.quarantined += from.quarantined;
  to.dispatches_lost += from.dispatches_lost;
  to.not_here += from.not_here;
  to.preemptions += from.preemptions;
}

// Whether all is well.
bool RunSeed(const Options& options, uint64_t seed, Verdict& total) {
  const Scenario scenario = MakeScenario(seed, options.scenario);
  if (options.verbose) std::cout << ToString(scenario) << std::flush;
  Verdict verdict = Run(scenario);
  const Verdict again = Run(scenario);
  if (verdict.trace != again.trace) {
    verdict.violations.push_back("two runs of the seed differ");
  }
  if (options.verbose) std::cout << verdict.log;
  Add(verdict, total);
  if (verdict.violations.empty()) return true;
  std::cout << "seed " << seed << " (" << scenario.name << ") fails:\n";
  for (const std::string& violation : verdict.violations) std::cout << "  " << violation << "\n";
  std::cout << "replay: sim --from " << seed << " --seeds 1 --verbose"
            << (options.scenario.empty() ? "" : " --scenario " + options.scenario) << std::endl;
  return false;
}

int Main(const Options& options) {
  spdlog::set_level(options.verbose ? spdlog::level::info : spdlog::level::off);
  Verdict total;
  for (int i = 0; i < options.seeds; ++i) {
    if (!RunSeed(options, options.from + static_cast<uint64_t>(i), total)) return 1;
  }
  std::cout << options.seeds << " seeds: " << total.requests_ended << " requests ended, "
            << total.tokens << " tokens, " << total.events << " events, " << total.ranks_lost
            << " ranks lost, " << total.resubmissions << " resubmissions, " << total.quarantined
            << " quarantined, " << total.dispatches_lost << " dispatches lost, " << total.not_here
            << " not here, " << total.preemptions << " preemptions" << std::endl;
  return 0;
}

}  // namespace
}  // namespace epic::sim

int main(int argc, char** argv) {
  epic::sim::Options options;
  CLI::App app("Simulated worlds of EPIC");
  app.add_option("--from", options.from, "the first seed");
  app.add_option("--seeds", options.seeds, "how many");
  app.add_option("--scenario", options.scenario, "one scenario for all seeds")
      ->check(CLI::IsMember(epic::sim::ScenarioNames()));
  app.add_flag("--verbose", options.verbose, "tell the scenario and the event log");
  CLI11_PARSE(app, argc, argv);
  return epic::sim::Main(options);
}
