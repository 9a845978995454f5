// The subcommands of `epic`. Each adds itself to `app`; when it is the one called, its callback runs
// and stores the process's exit code.
#pragma once

#include "CLI/CLI.hpp"

namespace epic::cli {

void AddServeCommand(CLI::App& app, int* exit_code);
void AddChatCommand(CLI::App& app, int* exit_code);
void AddCompleteCommand(CLI::App& app, int* exit_code);

}  // namespace epic::cli
