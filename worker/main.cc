// epic-worker: one rank. It dials the coordinator, loads what its roles need, and computes.
#include <sys/prctl.h>
#include <sys/signalfd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <string>

#include "base/epoll_loop.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "worker/options.h"
#include "worker/run.h"

namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

// A descriptor from which the signals that end the process are read. Called before any thread
// starts, so that all threads leave the signals to the loop.
int TakeSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  // A peer that has gone must be an error of the write, not the end of this process.
  std::signal(SIGPIPE, SIG_IGN);
  return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

absl::Status Run(const epic::worker::WorkerOptions& options, int signals) {
  epic::EpollLoop loop(epic::RealClock());
  return epic::worker::RunWorker(
      options, loop, {epic::RealClock(), loop, epic::RealRandom(), epic::RealThreads()}, signals);
}

}  // namespace

int main(int argc, char** argv) {
  epic::worker::WorkerOptions options;
  CLI::App app("EPIC's worker loads a model and computes for a coordinator.");
  epic::worker::AddWorkerOptions(app, options);
  CLI11_PARSE(app, argc, argv);
  const int signals = TakeSignals();
  // A worker must not outlive its supervisor. SIGTERM would let it finish its sequences first.
  if (options.exit_with_parent) prctl(PR_SET_PDEATHSIG, SIGKILL);
  epic::InitLog("worker", options.log_level);
  absl::Status status =
      epic::ArmFailpoint(Environment("EPIC_FAILPOINT"), Environment("EPIC_FAILPOINT_ONCE"));
  if (status.ok()) status = Run(options, signals);
  if (status.ok()) return 0;
  std::cerr << "error: " << status.message() << std::endl;
  return 1;
}
