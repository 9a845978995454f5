// epic: the command line. Each subcommand is a file that adds itself (commands.h).
#include "CLI/CLI.hpp"
#include "base/flags.h"
#include "cli/commands.h"

int main(int argc, char** argv) {
  CLI::App app("EPIC serves large mixture-of-experts language models.");
  app.require_subcommand(1);
  int exit_code = 0;
  epic::cli::AddServeCommand(app, &exit_code);
  epic::cli::AddChatCommand(app, &exit_code);
  epic::cli::AddCompleteCommand(app, &exit_code);
  epic::cli::AddBenchCommand(app, &exit_code);
  epic::cli::AddTopCommand(app, &exit_code);
  epic::cli::AddAdminCommand(app, &exit_code);
  epic::FinishFlags(app);
  CLI11_PARSE(app, argc, argv);
  return exit_code;
}
