// A simulated world: the real coordinator's Core, processes on their machines, clients, and what
// happens to them; with the judges of what must hold.
//
//   Verdict verdict = Run(MakeScenario(seed, ""));
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/sim/scenario.h"

namespace epic::sim {

struct Verdict {
  std::vector<std::string> violations;  // of what must hold; none: all is well
  uint64_t trace = 0;
  int64_t events = 0;
  // What was reached, so that a run that tests nothing is seen.
  int64_t tokens = 0;
  int64_t requests_ended = 0;
  int64_t resubmissions = 0;
  int64_t ranks_lost = 0;
  int64_t quarantined = 0;
  int64_t dispatches_lost = 0;
  int64_t not_here = 0;
  int64_t preemptions = 0;
  std::string log;  // the coordinator's event log
};

Verdict Run(const Scenario& scenario);

}  // namespace epic::sim
