// Supervisor: keeps a few child processes alive, and ends with them.
//
//   Supervisor supervisor(clock, {{"coordinator", {...}}, {"worker", {...}}});
//   return supervisor.Run(poll);
//
// A child that dies is started again, after 0.1 s and then after twice as long each time, up to a
// minute; one that has lived for a minute begins anew. The others go on meanwhile. The program ends
// by itself in two cases only: a child ends by itself before the supervisor was told that all is
// well (SetReady), since then its flags or files are wrong; or an essential child cannot start.
//
// SIGINT or SIGTERM asks the children to end, one after another; a second one kills them. A child
// that does not end in time is killed.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/env.h"

namespace epic::cli {

class Supervisor {
 public:
  struct Child {
    std::string name;
    std::vector<std::string> command;      // program and arguments
    std::vector<std::string> environment;  // NAME=value, in place of this process's own
    // How long it may take to end once asked to; then it is killed.
    absl::Duration grace = absl::Seconds(5);
    // The others are worth nothing without it.
    bool essential = false;
  };
  // An essential child cannot start if it has ended in error, or was killed before all was well,
  // this many times in a row.
  static constexpr int kStartsMax = 5;

  Supervisor(Clock& clock, std::vector<Child> children);

  // Runs until a signal, or until it gives up. Calls `poll` some times a second. Returns the
  // process's exit code. Blocks SIGINT, SIGTERM and SIGCHLD in this thread.
  int Run(const std::function<void()>& poll);
  void SetReady() { ready_ = true; }
  bool ending() const { return ending_; }

 private:
  struct State {
    Child child;
    pid_t pid = 0;  // 0: not running
    absl::Time start_at;
    absl::Time started_at;
    absl::Time kill_at = absl::InfiniteFuture();  // finite: it was asked to end
    int deaths = 0;                               // of its own, in a row
  };

  void StartDue();
  void OnSignal(int signal);
  void Reap();
  void OnDeath(State& state, int wait_status);
  bool CannotStart(const State& state, bool exited) const;
  void GiveUp(int code);
  // Asks the first child that still runs to end, once.
  void EndNext();
  void KillLate();
  void KillAll();
  bool AnyRuns() const;

  Clock& clock_;
  std::vector<State> states_;
  const State* last_dead_ = nullptr;
  absl::Time last_death_at_ = absl::InfinitePast();
  bool ready_ = false;
  bool ending_ = false;
  int exit_code_ = 0;
};

}  // namespace epic::cli
