#include "coordinator/options.h"

#include <cstdlib>

#include "base/status.h"
#include "coordinator/frontend/browser_rules.h"

namespace epic::coordinator {
namespace {

// A variable of a shell that is not set must not turn a secret off.
std::string CheckNotEmpty(const std::string& value) {
  return value.empty() ? "the value is empty; leave the flag out instead" : "";
}

}  // namespace

void AddServingOptions(CLI::App& app, CoordinatorOptions& options) {
  app.add_option("--host", options.host, "Address that clients reach")->capture_default_str();
  app.add_option("--port", options.port, "Port of HTTP")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--grpc-port", options.grpc_port, "Port of gRPC")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str();
  app.add_option("--served-model-name", options.served_model_names,
                 "Names that clients may use; the first is the canonical one");
  app.add_option("--max-queued-requests,--max-num-requests", options.max_queued_requests,
                 "Requests accepted and not ended; more are refused with 429")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--api-key", options.api_keys,
                 "A key of which clients must send one; may be repeated. Every user of the machine "
                 "can read a command line, so --api-key-file or EPIC_API_KEYS is better")
      ->check(CheckNotEmpty);
  app.add_option("--api-key-file", options.api_key_file,
                 "File with the keys of which clients must send one, a key a line")
      ->check(CheckNotEmpty);
  app.add_option("--cors-origins", options.cors_origins,
                 "Origins of the web pages that may use the HTTP interface, or * for all; default: "
                 "pages of the same host and of loopback addresses")
      ->delimiter(',')
      ->check([](const std::string& origin) { return std::string(CheckOrigin(origin).message()); });
  app.add_option("--allowed-hosts", options.allowed_hosts,
                 "Names that clients use for this server, beside loopback ones, where --host is a "
                 "loopback address")
      ->delimiter(',');
  app.add_option("--shutdown-timeout", options.shutdown_timeout_s,
                 "Seconds that running requests have to end after SIGTERM")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  app.add_option("--default-timeout", options.default_timeout_s,
                 "Seconds that a request may take if it does not say")
      ->check(CLI::Range(1.0, 86400.0))
      ->capture_default_str();
  app.add_option("--event-log", options.event_log,
                 "File to which what happens to the world is appended, as JSON lines");
  app.add_option("--state-dir", options.state_dir,
                 "Folder in which the coordinator keeps its term, the number of its life; it must "
                 "exist");
  app.add_option("--log-level", options.log_level, "debug, info, warning or error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
}

void AddCoordinatorOptions(CLI::App& app, CoordinatorOptions& options) {
  app.add_option("--model", options.model, "Folder of the Hugging Face checkpoint")->required();
  AddServingOptions(app, options);
  app.add_option("--control", options.control, "Where workers dial: host:port or unix:/path")
      ->capture_default_str();
  app.add_option("--operators", options.operators,
                 "Where operators ask (epic.v1.Cluster): host:port or unix:/path")
      ->capture_default_str();
  app.add_option(
         "--expect-ranks", options.expect_ranks,
         "Start when so many workers have joined; 0: when every expert has a slot and nobody "
         "has joined for 2 s")
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str();
  app.add_option("--expert-replicas", options.expert_replicas,
                 "Replicas of an expert that slots may be used for, once all have a home")
      ->check(CLI::Range(1, 1 << 10))
      ->capture_default_str();
  app.add_option("--join-token-file", options.join_token_file,
                 "File with the secret that workers must have too; needed where --control is "
                 "reached from other machines")
      ->check(CheckNotEmpty);
  app.add_flag("--insecure", options.insecure,
               "Let workers of other machines dial without encryption");
  app.add_option("--drain-move-after", options.drain_move_after_s,
                 "Seconds after which a draining worker's requests move to others")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  app.add_flag("--exit-with-parent", options.exit_with_parent,
               "Exit when the process that started this one dies; leave Ctrl-C to it");
}

absl::Status ResolveApiKeys(CoordinatorOptions& options) {
  const ApiKeySources sources = {.flags = options.api_keys,
                                 .file = options.api_key_file,
                                 .several = std::getenv(kApiKeysVariable),
                                 .single = std::getenv(kApiKeyVariable)};
  ASSIGN_OR_RETURN(options.api_keys, ReadApiKeys(sources));
  return absl::OkStatus();
}

}  // namespace epic::coordinator
