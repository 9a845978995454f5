#include "cli/supervisor.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace epic::cli {
namespace {

constexpr absl::Duration kDelayMin = absl::Milliseconds(100);
constexpr absl::Duration kDelayMax = absl::Minutes(1);
// A child that has lived so long starts anew: what killed it then is not what killed it before.
constexpr absl::Duration kLongLife = absl::Minutes(1);
// Within this time, a death follows from another child's: its peer, its coordinator, the machine.
constexpr absl::Duration kEchoTime = absl::Seconds(1);
// Forks fail while memory or process ids are short; the machine needs a while to recover.
constexpr absl::Duration kForkRetry = absl::Seconds(5);

sigset_t Signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGCHLD);
  return set;
}

// The arguments and the environment of a child as execve wants them, made before the fork: after
// it, malloc may be locked by a thread that the child does not have.
class Image {
 public:
  explicit Image(const Supervisor::Child& child) {
    CHECK(!child.command.empty()) << "the " << child.name << " has no command";
    for (const std::string& argument : child.command) Add(arguments_, argument);
    arguments_.push_back(nullptr);
    for (char** entry = environ; *entry != nullptr; ++entry) {
      if (!Replaced(*entry, child.environment)) environment_.push_back(*entry);
    }
    for (const std::string& entry : child.environment) Add(environment_, entry);
    environment_.push_back(nullptr);
    failure_ = absl::StrCat("error: cannot start ", child.command[0], "\n");
  }

  // After fork: becomes the command, and dies with its parent. Calls what is safe there alone.
  [[noreturn]] void Become(const sigset_t& blocked, pid_t parent) const {
    // The kernel sends this signal when the thread that forked ends, and only for an end after this
    // call. A parent that died before it is seen by the look at getppid.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    // A blocked signal stays blocked through execve, and the child could not be asked to end.
    sigprocmask(SIG_UNBLOCK, &blocked, nullptr);
    execve(arguments_[0], arguments_.data(), environment_.data());
    // The exit codes of shells: 126 and 127 say that the command could not be run.
    const ssize_t ignored = write(STDERR_FILENO, failure_.data(), failure_.size());
    _exit(ignored < 0 ? 126 : 127);
  }

 private:
  static void Add(std::vector<char*>& list, const std::string& text) {
    list.push_back(const_cast<char*>(text.c_str()));
  }
  static bool Replaced(const std::string& entry, const std::vector<std::string>& by) {
    // The sign is compared too, or a child that is given EPIC_API_KEYS would lose EPIC_API_KEY.
    const std::string name = entry.substr(0, entry.find('=') + 1);
    return std::ranges::any_of(by, [&](const std::string& e) { return e.starts_with(name); });
  }

  std::vector<char*> arguments_, environment_;
  std::string failure_;
};

}  // namespace

Supervisor::Supervisor(Clock& clock, std::vector<Child> children) : clock_(clock) {
  for (Child& child : children) {
    states_.push_back({.child = std::move(child), .start_at = clock.Now()});
  }
}

int Supervisor::Run(const std::function<void()>& poll) {
  const sigset_t set = Signals();
  sigprocmask(SIG_BLOCK, &set, nullptr);
  while (true) {
    StartDue();
    if (ending_ && !AnyRuns()) return exit_code_;
    // SIGCHLD ends the wait at once. The 50 ms are for restarts that are due, for children that are
    // late, and for the poll.
    const timespec wait = {.tv_sec = 0, .tv_nsec = 50'000'000};
    const int signal = sigtimedwait(&set, nullptr, &wait);
    if (signal > 0) OnSignal(signal);
    // Every round looks at all children: signals of one number merge, so one SIGCHLD may tell of
    // many deaths.
    Reap();
    KillLate();
    if (!ending_) poll();
  }
}

void Supervisor::StartDue() {
  for (State& state : states_) {
    if (ending_ || state.pid != 0 || clock_.Now() < state.start_at) continue;
    const Image image(state.child);
    const sigset_t blocked = Signals();
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid == 0) image.Become(blocked, parent);
    if (pid < 0) {
      std::cerr << "error: cannot start the " << state.child.name << ": " << std::strerror(errno)
                << std::endl;
      state.start_at = clock_.Now() + kForkRetry;
      continue;
    }
    state.pid = pid;
    state.started_at = clock_.Now();
  }
}

void Supervisor::OnSignal(int signal) {
  // A death is no request to end, and Run reaps after every signal.
  if (signal == SIGCHLD) return;
  if (ending_) return KillAll();
  ending_ = true;
  std::cerr << "\nEnding: running requests may finish; Ctrl-C again ends them." << std::endl;
  EndNext();
}

void Supervisor::EndNext() {
  for (State& state : states_) {
    if (state.pid == 0) continue;
    // To a coordinator, a second SIGTERM means: end now what still runs.
    if (state.kill_at < absl::InfiniteFuture()) return;
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
    state.kill_at = clock_.Now() + state.child.grace;
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
  CHECK_EQ(state.pid, 0);
  // While ending, each death makes the next child's turn, and none is started again.
  if (ending_) return EndNext();
  const bool exited = WIFEXITED(wait_status);
  const int code = exited ? WEXITSTATUS(wait_status) : WTERMSIG(wait_status);
  const absl::Time now = clock_.Now();
  if (now - state.started_at >= kLongLife) state.deaths = 0;
  const bool echo = last_dead_ != nullptr && last_dead_ != &state &&
                    now - last_death_at_ < kEchoTime;
  // An echo leaves the count as it is, so that two children that die in turns still slow down.
  if (!echo || state.deaths == 0) ++state.deaths;
  last_dead_ = &state;
  last_death_at_ = now;
  std::cerr << "The " << state.child.name << " ended with " << (exited ? "exit code " : "signal ")
            << code;
  if (CannotStart(state, exited)) return GiveUp(exited ? code : 128 + code);
  const absl::Duration delay = std::min(kDelayMin * std::pow(2, state.deaths - 1), kDelayMax);
  std::cerr << "; starting it again";
  if (state.deaths > 1) {
    std::cerr << " in " << absl::FormatDuration(delay) << ", after death " << state.deaths
              << " in a row";
  }
  std::cerr << std::endl;
  state.start_at = now + delay;
}

bool Supervisor::CannotStart(const State& state, bool exited) const {
  // A signal from outside (the machine is out of memory) says nothing about flags and files, so a
  // child that was killed is started again.
  if (exited && !ready_) return true;
  return state.child.essential && state.deaths >= kStartsMax && (exited || !ready_);
}

void Supervisor::GiveUp(int code) {
  std::cerr << "; giving up" << std::endl;
  ending_ = true;
  // A child that ended by itself with code 0 has still ended too early, and scripts must see a
  // failure.
  exit_code_ = code == 0 ? 1 : code;
  KillAll();
}

}  // namespace epic::cli
