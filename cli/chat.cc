#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <memory>

#include "cli/commands.h"
#include "cli/generate_client.h"

namespace epic::cli {
namespace {

struct ChatOptions {
  GenerateOptions generate;
  std::string system;
  std::string message;
  bool hide_reasoning = false;
};

// Prints an answer as it comes, the reasoning dimmed where a person watches.
class AnswerPrinter {
 public:
  explicit AnswerPrinter(bool hide_reasoning)
      : colour_(isatty(STDOUT_FILENO) != 0), hide_reasoning_(hide_reasoning) {}

  void Print(const v1::GenerateResponse& response) {
    if (!hide_reasoning_ && !response.reasoning().empty()) {
      if (!reasoning_) Write(colour_ ? "\033[2m" : "");
      reasoning_ = true;
      Write(response.reasoning());
    }
    if (!response.text().empty()) {
      if (reasoning_) Write(colour_ ? "\033[0m\n\n" : "\n\n");
      reasoning_ = false;
      answer_ += response.text();
      Write(response.text());
    }
    if (!response.finish_reason().empty()) {
      // An answer may end within its reasoning (max_tokens). The terminal must not stay dimmed.
      if (reasoning_ && colour_) Write("\033[0m");
      Write("\n");
    }
  }

  const std::string& answer() const { return answer_; }

 private:
  static void Write(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  const bool colour_;
  const bool hide_reasoning_;
  bool reasoning_ = false;
  std::string answer_;
};

void AddMessage(v1::Messages& messages, const std::string& role, const std::string& content) {
  v1::ChatMessage* message = messages.add_messages();
  message->set_role(role);
  message->set_content(content);
}

// Asks one question in the conversation so far, and adds question and answer to it.
bool Ask(GenerateClient& client, const ChatOptions& options, v1::Messages& conversation,
         const std::string& question) {
  AddMessage(conversation, "user", question);
  v1::GenerateRequest request = NewRequest(options.generate);
  *request.mutable_messages() = conversation;
  AnswerPrinter printer(options.hide_reasoning);
  const absl::Status status = client.Generate(
      request, [&](const v1::GenerateResponse& response) { printer.Print(response); });
  if (!status.ok()) {
    std::cerr << "error: " << status.message() << "\n";
    // The question goes, so that the next one does not follow another question without an answer.
    conversation.mutable_messages()->RemoveLast();
    return false;
  }
  // The answer goes back without its reasoning, as the templates of reasoning models expect of
  // earlier turns.
  AddMessage(conversation, "assistant", printer.answer());
  return true;
}

int Chat(const ChatOptions& options) {
  GenerateClient client(options.generate.server);
  v1::Messages conversation;
  if (!options.system.empty()) AddMessage(conversation, "system", options.system);
  if (!options.message.empty()) {
    return Ask(client, options, conversation, options.message) ? 0 : 1;
  }
  // A script that pipes its questions in gets answers alone, without invitations between them.
  const bool person = isatty(STDIN_FILENO) != 0;
  if (person) std::cout << "Ask something; an empty line or Ctrl-D ends the chat.\n";
  // After a failed question the chat goes on, and its exit code tells scripts that one has failed.
  bool well = true;
  std::string question;
  while ((person ? std::cout << "\n> " << std::flush : std::cout) &&
         std::getline(std::cin, question) && !question.empty()) {
    well = Ask(client, options, conversation, question) && well;
  }
  return well ? 0 : 1;
}

}  // namespace

void AddChatCommand(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<ChatOptions>();
  CLI::App* command =
      app.add_subcommand("chat", "Talk to a served model, or ask it one question.");
  command->add_option("message", options->message,
                      "The question. Without it, a conversation begins.");
  command->add_option("--system", options->system, "The system message of the conversation.");
  command->add_flag("--hide-reasoning", options->hide_reasoning,
                    "Show the answers without their reasoning.");
  AddGenerateOptions(*command, options->generate);
  command->callback([options, exit_code] { *exit_code = Chat(*options); });
}

}  // namespace epic::cli
