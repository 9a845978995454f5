#include <cstdio>
#include <iostream>
#include <memory>

#include "cli/commands.h"
#include "cli/generate_client.h"

namespace epic::cli {
namespace {

struct CompleteOptions {
  GenerateOptions generate;
  std::string prompt;
};

int Complete(const CompleteOptions& options) {
  GenerateClient client(options.generate.server);
  v1::GenerateRequest request = NewRequest(options.generate);
  request.set_text(options.prompt);
  const absl::Status status =
      client.Generate(request, [](const v1::GenerateResponse& response) {
        std::fwrite(response.text().data(), 1, response.text().size(), stdout);
        std::fflush(stdout);
      });
  // The newline comes after a failure too: an error must not be read as the end of the text.
  std::cout << std::endl;
  if (!status.ok()) std::cerr << "error: " << status.message() << "\n";
  return status.ok() ? 0 : 1;
}

}  // namespace

void AddCompleteCommand(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<CompleteOptions>();
  CLI::App* command = app.add_subcommand("complete", "Continue a text, without a chat template.");
  command->add_option("prompt", options->prompt, "The text to continue.")->required();
  AddGenerateOptions(*command, options->generate);
  command->callback([options, exit_code] { *exit_code = Complete(*options); });
}

}  // namespace epic::cli
