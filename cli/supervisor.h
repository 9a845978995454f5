// Supervisor: keeps a few child processes alive, and ends with them.
//
//   Supervisor supervisor(clock, {{"coordinator", {...}}, {"worker", {...}}});
//   return supervisor.Run(poll);
//
// A child that dies is started again, after 0.1 s and then ever longer; after kDeathsMax deaths of
// one child within kDeathsWindow all are ended. A child that ends by itself with an error before
// the supervisor was told that all is well (SetReady) is not tried again: its flags or files are
// wrong. SIGINT or SIGTERM asks the children to end, the first one first; another kills them.
// One that does not end in time is killed.
#pragma once

#include <sys/types.h>

#include <deque>
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
    std::vector<std::string> command;  // program and arguments
    // How long it may take to end once asked to; then it is killed.
    absl::Duration grace = absl::Seconds(5);
  };
  static constexpr int kDeathsMax = 5;
  static constexpr absl::Duration kDeathsWindow = absl::Seconds(60);

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
    absl::Time kill_at = absl::InfiniteFuture();
    absl::Duration delay;
    std::deque<absl::Time> deaths;  // within kDeathsWindow
  };

  void StartDue();
  void OnSignal(int signal);
  void Reap();
  void OnDeath(State& state, int wait_status);
  // Asks the first child that still runs to end.
  void EndNext();
  void KillLate();
  void KillAll();
  bool AnyRuns() const;

  Clock& clock_;
  std::vector<State> states_;
  bool ready_ = false;
  bool ending_ = false;
  int exit_code_ = 0;
};

}  // namespace epic::cli
