// What the flags of EPIC's programs have beyond CLI11: a variable for each, a description as JSON,
// and a way into the command line of another program.
//
// A value comes from the flag, else from its variable, else it is the default.
#pragma once

#include <string>
#include <vector>

#include "CLI/CLI.hpp"

namespace epic {

// Gives each flag of `app` and of its subcommands a variable (--kv-cache-dtype has
// EPIC_KV_CACHE_DTYPE), and adds --help-json. Once, when all flags are there, before they are
// parsed. `app` outlives the parsing.
void FinishFlags(CLI::App& app);

// {"name", "help", "flags": [{"names", "variable", "help", "default", "type", "words",
// "required"}], "commands": [the same of each subcommand]}. A flag has "words" if only these are
// values of it.
std::string HelpJson(CLI::App& app);

// The flags that `add` adds to `app`.
template <typename Add>
std::vector<CLI::Option*> FlagsAddedBy(CLI::App& app, Add add) {
  const size_t before = app.get_options().size();
  add();
  const std::vector<CLI::Option*> all = app.get_options();
  return {all.begin() + static_cast<ptrdiff_t>(before), all.end()};
}

// Arguments that give another program, which has the same flags, the values of `flags`: those that
// came from a flag or a variable. Call it after the parsing.
std::vector<std::string> Forwarded(const std::vector<CLI::Option*>& flags);

}  // namespace epic
