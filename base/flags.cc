#include "base/flags.h"

#include <algorithm>
#include <cctype>
#include <iostream>

#include "base/check.h"
#include "nlohmann/json.hpp"

namespace epic {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kHelp = "-h,--help";
constexpr const char* kHelpJson = "--help-json";

// Positional arguments have no name, and help is asked for by hand.
bool HasVariable(const CLI::Option& option) {
  const std::vector<std::string>& names = option.get_lnames();
  return !names.empty() && names[0] != "help" && names[0] != "help-json";
}

std::string VariableOf(const CLI::Option& option) {
  std::string name = "EPIC_" + option.get_lnames()[0];
  std::ranges::transform(name, name.begin(), [](unsigned char c) {
    return c == '-' ? '_' : static_cast<char>(std::toupper(c));
  });
  return name;
}

// CLI11 keeps the words of IsMember in the type's name alone: "TEXT:{auto,bf16,fp8}".
std::vector<std::string> WordsOf(const std::string& type) {
  const size_t begin = type.find('{'), end = type.find('}');
  std::vector<std::string> words;
  if (begin == type.npos || end == type.npos || end < begin) return words;
  std::string word;
  for (const char c : type.substr(begin + 1, end - begin - 1) + ",") {
    if (c != ',') {
      word += c;
    } else {
      words.push_back(std::exchange(word, std::string()));
    }
  }
  return words;
}

Json DescribeFlag(const CLI::Option& option) {
  Json names = Json::array();
  for (const std::string& name : option.get_lnames()) names.push_back("--" + name);
  for (const std::string& name : option.get_snames()) names.push_back("-" + name);
  if (names.empty()) names.push_back(option.get_name());
  const std::string type = option.get_type_name();
  Json flag = {{"names", names},
               {"variable", option.get_envname()},
               {"help", option.get_description()},
               {"default", option.get_default_str()},
               {"type", type},
               {"required", option.get_required()}};
  if (const std::vector<std::string> words = WordsOf(type); !words.empty()) flag["words"] = words;
  return flag;
}

Json Describe(CLI::App& app) {
  Json described = {{"name", app.get_name()},
                    {"help", app.get_description()},
                    {"flags", Json::array()},
                    {"commands", Json::array()}};
  for (const CLI::Option* option : app.get_options()) {
    described["flags"].push_back(DescribeFlag(*option));
  }
  for (CLI::App* command : app.get_subcommands({})) {
    described["commands"].push_back(Describe(*command));
  }
  return described;
}

}  // namespace

void FinishFlags(CLI::App& app) {
  CHECK(app.get_option_no_throw(kHelpJson) == nullptr) << app.get_name() << " is finished already";
  app.set_help_flag(kHelp, "Print this help and exit.");
  for (CLI::Option* option : app.get_options()) {
    if (HasVariable(*option)) option->envname(VariableOf(*option));
  }
  // Before what is required is looked for, so that it works alone.
  app.add_flag_callback(
      kHelpJson,
      [&app] {
        std::cout << HelpJson(app) << std::endl;
        // CLI11 ends the parsing at an exception. This one makes the exit code 0.
        throw CLI::Success();
      },
      "Print this help as JSON and exit.");
  for (CLI::App* command : app.get_subcommands({})) FinishFlags(*command);
}

std::string HelpJson(CLI::App& app) { return Describe(app).dump(1); }

std::vector<std::string> Forwarded(const std::vector<CLI::Option*>& flags) {
  std::vector<std::string> arguments;
  for (const CLI::Option* option : flags) {
    CHECK(!option->get_lnames().empty()) << option->get_name() << " is no flag";
    const std::string name = "--" + option->get_lnames()[0];
    const bool is_switch = option->get_expected_max() == 0;
    // A variable may set a switch to false, which is no reason to hand it on.
    if (is_switch && option->count() > 0 && option->as<bool>()) arguments.push_back(name);
    if (is_switch) continue;
    // A list becomes the flag once for each value, which needs no separator that a value could
    // have.
    for (const std::string& value : option->results()) {
      arguments.insert(arguments.end(), {name, value});
    }
  }
  return arguments;
}

}  // namespace epic
