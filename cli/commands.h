// The subcommands of `epic`. Each adds itself to `app`; the one called runs in its callback and
// stores the exit code of the process.
#pragma once

#include "CLI/CLI.hpp"

namespace epic::cli {

void AddServeCommand(CLI::App& app, int* exit_code);
void AddBenchCommand(CLI::App& app, int* exit_code);
void AddChatCommand(CLI::App& app, int* exit_code);
void AddCompleteCommand(CLI::App& app, int* exit_code);
void AddAdminCommand(CLI::App& app, int* exit_code);
void AddTopCommand(CLI::App& app, int* exit_code);

}  // namespace epic::cli
