#include "cli/supervisor.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <iostream>

namespace epic::cli {
namespace {

constexpr absl::Duration kDelayMin = absl::Milliseconds(100);
constexpr absl::Duration kDelayMax = absl::Seconds(5);

sigset_t Signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGCHLD);
  return set;
}

// After fork: becomes the command, and dies with its parent.
[[noreturn]] void Become(const std::vector<std::string>& command, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  const sigset_t set = Signals();
  sigprocmask(SIG_UNBLOCK, &set, nullptr);
  std::vector<char*> arguments;
  for (const std::string& argument : command) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  execv(arguments[0], arguments.data());
  std::cerr << "error: cannot start " << command[0] << ": " << std::strerror(errno) << std::endl;
  _exit(127);
}

}  // namespace

Supervisor::Supervisor(Clock& clock, std::vector<Child> children) : clock_(clock) {
  for (Child& child : children) {
    states_.push_back({.child = std::move(child), .start_at = clock.Now(), .delay = kDelayMin});
  }
}

int Supervisor::Run(const std::function<void()>& poll) {
  const sigset_t set = Signals();
  sigprocmask(SIG_BLOCK, &set, nullptr);
  while (true) {
    StartDue();
    if (ending_ && !AnyRuns()) return exit_code_;
    const timespec wait = {.tv_sec = 0, .tv_nsec = 50'000'000};
    const int signal = sigtimedwait(&set, nullptr, &wait);
    if (signal > 0) OnSignal(signal);
    Reap();
    KillLate();
    if (!ending_) poll();
  }
}

void Supervisor::StartDue() {
  for (State& state : states_) {
    if (ending_ || state.pid != 0 || clock_.Now() < state.start_at) continue;
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid == 0) Become(state.child.command, parent);
    if (pid < 0) {
      std::cerr << "error: cannot start the " << state.child.name << ": " << std::strerror(errno)
                << std::endl;
      state.start_at = clock_.Now() + kDelayMax;
      continue;
    }
    state.pid = pid;
  }
}

void Supervisor::OnSignal(int signal) {
  if (signal == SIGCHLD) return;
  if (ending_) return KillAll();
  ending_ = true;
  std::cerr << "\nEnding: running requests may finish; Ctrl-C again ends them." << std::endl;
  EndNext();
}

void Supervisor::EndNext() {
  for (State& state : states_) {
    if (state.pid == 0) continue;
    kill(state.pid, SIGTERM);
    state.kill_at = clock_.Now() + state.child.grace;
    return;
  }
}

void Supervisor::KillLate() {
  for (State& state : states_) {
    if (state.pid == 0 || clock_.Now() < state.kill_at) continue;
    std::cerr << "The " << state.child.name << " does not end: killing it" << std::endl;
    kill(state.pid, SIGKILL);
    state.kill_at = absl::InfiniteFuture();
  }
}

void Supervisor::KillAll() {
  for (const State& state : states_) {
    if (state.pid != 0) kill(state.pid, SIGKILL);
  }
}

bool Supervisor::AnyRuns() const {
  return std::any_of(states_.begin(), states_.end(), [](const State& s) { return s.pid != 0; });
}

void Supervisor::Reap() {
  int wait_status = 0;
  for (State& state : states_) {
    if (state.pid == 0 || waitpid(state.pid, &wait_status, WNOHANG) != state.pid) continue;
    state.pid = 0;
    OnDeath(state, wait_status);
  }
}

void Supervisor::OnDeath(State& state, int wait_status) {
  if (ending_) return EndNext();
  const bool exited = WIFEXITED(wait_status);
  const int code = exited ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
  const absl::Time now = clock_.Now();
  state.deaths.push_back(now);
  while (state.deaths.front() < now - kDeathsWindow) state.deaths.pop_front();
  const bool hopeless = exited && !ready_;
  const bool too_often = static_cast<int>(state.deaths.size()) >= kDeathsMax;
  std::cerr << "The " << state.child.name << " ended with " << (exited ? "exit code " : "signal ")
            << (exited ? code : code - 128);
  if (hopeless || too_often) {
    std::cerr << (too_often ? "; it is death 5 within 60 s: giving up" : "; giving up")
              << std::endl;
    ending_ = true;
    exit_code_ = code == 0 ? 1 : code;
    return KillAll();
  }
  std::cerr << "; starting it again" << std::endl;
  if (state.deaths.size() == 1) state.delay = kDelayMin;
  state.start_at = now + state.delay;
  state.delay = std::min(state.delay * 2, kDelayMax);
}

}  // namespace epic::cli
