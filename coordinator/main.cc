// epic-coordinator: the door for clients and the mind across ranks.
#include <sys/prctl.h>
#include <sys/signalfd.h>

#include <csignal>
#include <iostream>

#include "base/log.h"
#include "coordinator/options.h"
#include "coordinator/program.h"

int main(int argc, char** argv) {
  epic::coordinator::CoordinatorOptions options;
  CLI::App app("EPIC's coordinator serves clients over HTTP and gRPC, and decides across workers.");
  epic::coordinator::AddCoordinatorOptions(app, options);
  CLI11_PARSE(app, argc, argv);
  // Before any thread, so that all leave the signals to the loop.
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  // A client that is gone must be an error of one write, and never end the process.
  std::signal(SIGPIPE, SIG_IGN);
  // A supervisor that is killed can end nothing itself, and a coordinator that it leaves behind
  // would keep its ports.
  if (options.exit_with_parent) prctl(PR_SET_PDEATHSIG, SIGKILL);
  epic::InitLog("coordinator", options.log_level);
  absl::Status status = epic::coordinator::ResolveApiKeys(options);
  if (status.ok()) {
    status = epic::coordinator::RunProgram(options, signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  }
  if (status.ok()) return 0;
  std::cerr << "error: " << status.message() << std::endl;
  return 1;
}
