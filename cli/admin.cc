#include <unistd.h>

#include <csignal>
#include <iostream>
#include <memory>

#include "cli/commands.h"
#include "cli/operators_client.h"
#include "coordinator/options.h"

namespace epic::cli {
namespace {

struct AdminOptions {
  // The coordinator's own default, so that the two programs agree when neither is told an address.
  std::string operators = coordinator::CoordinatorOptions().operators;
  int rank = 0;
  bool cancel = false;
  bool off = false;
  bool follow = false;
  uint64_t from = 0;
  double interval_s = 1;
};

int Report(const absl::Status& status) {
  if (status.ok()) return 0;
  std::cerr << "error: " << status.message() << std::endl;
  return 1;
}

int ShowState(const AdminOptions& options) {
  const auto state = OperatorsClient(options.operators).GetState();
  if (!state.ok()) return Report(state.status());
  std::cout << StateTable(*state);
  return 0;
}

int ShowEvents(const AdminOptions& options) {
  OperatorsClient client(options.operators);
  const auto print = [](const v1::ClusterEvent& event) {
    std::cout << EventLine(event) << std::flush;
  };
  if (options.follow) {
    // To the service, 0 means "from now on". A person who follows wants the past too, so without
    // --from the stream starts at the first event.
    return Report(client.WatchEvents(options.from > 0 ? options.from : 1, print));
  }
  const auto events = client.ListEvents(options.from, 0);
  if (!events.ok()) return Report(events.status());
  for (const v1::ClusterEvent& event : events->events()) print(event);
  return 0;
}

// Runs until it is interrupted.
int Top(const AdminOptions& options) {
  OperatorsClient client(options.operators);
  // The signals are blocked and taken by sigtimedwait below, which is therefore both the pause and
  // the way out: no handler runs in the middle of a table.
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  const bool terminal = isatty(STDOUT_FILENO) != 0;
  constexpr int kEventsShown = 8;
  // The number of the first event that the last look showed. Each look asks from there on, so that
  // a long log is sent once and not every second.
  uint64_t from = 0;
  while (true) {
    const auto state = client.GetState();
    // The screen is cleared only after the answer has come, so it does not flicker. A file or a
    // pipe gets the tables one after another.
    if (terminal) std::cout << "\033[H\033[2J";
    // An error is shown and asked about again: a person who watches a coordinator start anew must
    // not have to start this as well.
    std::cout << (state.ok() ? StateTable(*state)
                             : "error: " + std::string(state.status().message()) + "\n");
    const auto events = client.ListEvents(from, 0);
    if (events.ok()) {
      std::cout << "\n";
      const int first = std::max(0, events->events_size() - kEventsShown);
      for (int i = first; i < events->events_size(); ++i) std::cout << EventLine(events->events(i));
      if (first < events->events_size()) from = events->events(first).number();
    }
    std::cout << std::flush;
    const auto nanoseconds = static_cast<int64_t>(options.interval_s * 1e9);
    const timespec wait = {.tv_sec = nanoseconds / 1'000'000'000,
                           .tv_nsec = nanoseconds % 1'000'000'000};
    if (sigtimedwait(&set, nullptr, &wait) > 0) return 0;
  }
}

CLI::App* AddRankCommand(CLI::App& admin, AdminOptions& options, const char* name,
                         const char* help) {
  CLI::App* command = admin.add_subcommand(name, help);
  command->add_option("rank", options.rank, "The number of the rank.")->required();
  return command;
}

}  // namespace

void AddAdminCommand(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<AdminOptions>();
  CLI::App* admin = app.add_subcommand("admin", "Look at a running EPIC and steer it.");
  admin->require_subcommand(1);
  admin->fallthrough();
  AddOperatorsOption(*admin, options->operators);
  admin->add_subcommand("state", "Show what the ranks are and do.")->callback([options, exit_code] {
    *exit_code = ShowState(*options);
  });
  CLI::App* events = admin->add_subcommand("events", "Show what has happened.");
  events->add_option("--from", options->from, "The number of the first event that is shown.");
  events->add_flag("--follow,-f", options->follow, "Go on with what happens from now on.");
  events->callback([options, exit_code] { *exit_code = ShowEvents(*options); });
  AddRankCommand(*admin, *options, "fence",
                 "Take a rank out: it drops everything and joins as a new one.")
      ->callback([options, exit_code] {
        *exit_code = Report(OperatorsClient(options->operators).Fence(options->rank));
      });
  CLI::App* freeze = admin->add_subcommand(
      "freeze", "Revoke no rank on suspicion, and move no expert to balance load.");
  freeze->add_flag("--off", options->off, "Resume revocation and rebalancing.");
  freeze->callback([options, exit_code] {
    *exit_code = Report(OperatorsClient(options->operators).Freeze(!options->off));
  });
  CLI::App* drain = AddRankCommand(*admin, *options, "drain",
                                   "Move a rank's experts and requests away, then let it end.");
  drain->add_flag("--cancel", options->cancel, "Cancel the drain, if it is not too late.");
  drain->callback([options, exit_code] {
    *exit_code = Report(OperatorsClient(options->operators).Drain(options->rank, options->cancel));
  });
}

void AddTopCommand(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<AdminOptions>();
  CLI::App* command =
      app.add_subcommand("top", "Show the ranks and the last events, again and again.");
  AddOperatorsOption(*command, options->operators);
  command->add_option("--interval", options->interval_s, "The time between two looks, in seconds.")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  command->callback([options, exit_code] { *exit_code = Top(*options); });
}

}  // namespace epic::cli
