#include "coordinator/options.h"

#include <cstdlib>

#include "base/flags.h"
#include "base/status.h"
#include "coordinator/frontend/browser_rules.h"

namespace epic::coordinator {
namespace {

// A variable of a shell that is not set must not turn a secret off.
std::string CheckNotEmpty(const std::string& value) {
  return value.empty() ? "the value is empty; leave the flag out instead" : "";
}

void AddKeyOptions(CLI::App& app, CoordinatorOptions& options) {
  app.add_option("--api-key", options.api_keys,
                 "A key of which clients must send one; may be repeated. Every user of the machine "
                 "can read a command line, so --api-key-file or EPIC_API_KEYS is better.")
      ->check(CheckNotEmpty);
  app.add_option("--api-key-file", options.api_key_file,
                 "The file with the keys of which clients must send one, a key a line.")
      ->check(CheckNotEmpty);
}

// A web page of anybody can make the browser of its reader send requests here, and can make its own
// name point to a loopback address. These options say which pages and which names are trusted.
void AddBrowserOptions(CLI::App& app, CoordinatorOptions& options) {
  app.add_option("--cors-origins", options.cors_origins,
                 "The origins of the web pages that may use the HTTP interface, or * for all. By "
                 "default, pages of the same host and of loopback addresses may.")
      ->delimiter(',')
      // CLI11 takes an empty text for "nothing is wrong".
      ->check([](const std::string& origin) { return std::string(CheckOrigin(origin).message()); });
  app.add_option("--allowed-hosts", options.allowed_hosts,
                 "The names that clients use for this server, beside loopback ones, where --host "
                 "is a loopback address.")
      ->delimiter(',');
}

}  // namespace

void AddServingOptions(CLI::App& app, CoordinatorOptions& options) {
  app.add_option("--host", options.host, "The address that clients reach.")->capture_default_str();
  // With port 0 the system chooses one, and the log tells it. The gRPC address is logged as it was
  // given, so 0 is refused there.
  app.add_option("--port", options.port, "The port of the HTTP interface.")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--grpc-port", options.grpc_port, "The port of the gRPC interface.")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str();
  app.add_option("--operators", options.operators,
                 "The address where operators ask (epic.v1.Cluster): host:port or unix:/path.")
      ->capture_default_str();
  app.add_option("--served-model-name", options.served_model_names,
                 "The names that clients may use; answers carry the first.");
  app.add_option("--max-queued-requests,--max-num-requests", options.max_queued_requests,
                 "The number of requests that may wait or run; more are refused with 429.")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  AddBrowserOptions(app, options);
  app.add_option("--shutdown-timeout", options.shutdown_timeout_s,
                 "The time that running requests have to end after SIGTERM, in seconds.")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  // 86400 s is also the most that a request may ask for (FrontendLimits::timeout_max).
  app.add_option("--default-timeout", options.default_timeout_s,
                 "The default request timeout, in seconds.")
      ->check(CLI::Range(1.0, 86400.0))
      ->capture_default_str();
  app.add_option("--event-log", options.event_log,
                 "The file to which events of the world are appended, as JSON lines.");
  app.add_option("--state-dir", options.state_dir,
                 "The folder in which the coordinator keeps its term, the number of its life. The "
                 "folder must exist.");
  app.add_option("--log-level", options.log_level, "The lowest level that is logged.")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
  AddKeyOptions(app, options);
}

void AddCoordinatorOptions(CLI::App& app, CoordinatorOptions& options) {
  app.add_option("--model", options.model, "The folder of the Hugging Face checkpoint.")
      ->required();
  AddServingOptions(app, options);
  app.add_option("--control", options.control,
                 "The address that workers dial: host:port or unix:/path.")
      ->capture_default_str();
  app.add_option("--expect-ranks", options.expect_ranks,
                 "The number of workers to wait for. 0 waits until every expert has a slot and no "
                 "worker has joined for 2 s.")
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str();
  app.add_option("--expert-replicas", options.expert_replicas,
                 "The number of replicas of an expert that free slots may hold, once every expert "
                 "has a home.")
      ->check(CLI::Range(1, 1 << 10))
      ->capture_default_str();
  app.add_option("--join-token-file", options.join_token_file,
                 "The file with the secret that workers must have too. It is needed where other "
                 "machines reach --control.")
      ->check(CheckNotEmpty);
  app.add_flag("--insecure", options.insecure,
               "Let workers of other machines dial without encryption.");
  app.add_option("--drain-move-after", options.drain_move_after_s,
                 "The time after which the requests of a draining worker move to others, in "
                 "seconds.")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  app.add_flag("--exit-with-parent", options.exit_with_parent,
               "Exit when the process that started this one dies, and leave Ctrl-C to it.");
  // This must come behind all flags, because it gives each of them a variable.
  FinishFlags(app);
}

absl::Status ResolveApiKeys(CoordinatorOptions& options) {
  // EPIC_API_KEY is also the variable of --api-key, and CLI11 looks at it only if the flag is
  // absent. The keys of all sources count, so the environment is read here in any case.
  const ApiKeySources sources = {.flags = options.api_keys,
                                 .file = options.api_key_file,
                                 .several = std::getenv(kApiKeysVariable),
                                 .single = std::getenv(kApiKeyVariable)};
  ASSIGN_OR_RETURN(options.api_keys, ReadApiKeys(sources));
  return absl::OkStatus();
}

}  // namespace epic::coordinator
