#include <grpcpp/grpcpp.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/flags.h"
#include "base/status.h"
#include "cli/commands.h"
#include "cli/free_address.h"
#include "cli/supervisor.h"
#include "coordinator/api_keys.h"
#include "coordinator/options.h"
#include "proto/epic/v1/cluster.grpc.pb.h"
#include "worker/options.h"

namespace epic::cli {
namespace {

struct ServeOptions {
  coordinator::CoordinatorOptions coordinator;
  worker::WorkerOptions worker;
  // The flags that the coordinator, and each worker, has too: they are handed on as they are.
  std::vector<CLI::Option*> coordinator_flags, worker_flags;
  int attention_ranks = 1;
  int expert_ranks = 0;  // 0: the attention ranks hold the experts too
  bool dry_run = false;

  int ranks() const { return attention_ranks + expert_ranks; }
};

// A private folder for the sockets between the processes, gone at the end.
class RunFolder {
 public:
  RunFolder() {
    std::string path = (std::filesystem::temp_directory_path() / "epic-XXXXXX").string();
    if (mkdtemp(path.data()) != nullptr) path_ = path;
  }
  ~RunFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Where this program's companions are.
std::string Beside(const std::string& program) {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / program).string();
}

// `roles` as epic-worker takes them.
std::vector<std::string> WorkerCommand(const ServeOptions& options, const std::string& roles,
                                       const std::string& run_folder) {
  // Every worker is told how many ranks hold experts, because the room for experts in its memory
  // plan follows from that number.
  const int holders = options.expert_ranks > 0 ? options.expert_ranks : options.attention_ranks;
  std::vector<std::string> command = {Beside("epic-worker"),
                                      "--model",
                                      options.coordinator.model,
                                      "--log-level",
                                      options.coordinator.log_level,
                                      "--roles",
                                      roles,
                                      "--expert-ranks",
                                      absl::StrCat(holders),
                                      "--local-ranks",
                                      absl::StrCat(options.ranks())};
  const std::vector<std::string> given = Forwarded(options.worker_flags);
  command.insert(command.end(), given.begin(), given.end());
  if (options.dry_run) {
    command.push_back("--dry-run");
  } else {
    command.insert(command.end(), {"--coordinator", absl::StrCat("unix:", run_folder, "/control"),
                                   "--run-dir", run_folder, "--exit-with-parent"});
  }
  return command;
}

std::vector<Supervisor::Child> Workers(const ServeOptions& options, const std::string& run_folder) {
  std::vector<Supervisor::Child> workers;
  const auto add = [&](int count, const std::string& name, const std::string& roles) {
    for (int i = 0; i < count; ++i) {
      workers.push_back({.name = count == 1 ? name : absl::StrCat(name, " ", i),
                         .command = WorkerCommand(options, roles, run_folder)});
    }
  };
  if (options.expert_ranks == 0) {
    add(options.attention_ranks, "worker", "attention,experts");
  } else {
    add(options.attention_ranks, "attention worker", "attention");
    add(options.expert_ranks, "expert worker", "experts");
  }
  return workers;
}

std::vector<std::string> CoordinatorCommand(const ServeOptions& options,
                                            const std::string& control) {
  std::vector<std::string> command = {Beside("epic-coordinator"),
                                      "--model",
                                      options.coordinator.model,
                                      "--control",
                                      control,
                                      "--expect-ranks",
                                      absl::StrCat(options.ranks()),
                                      "--exit-with-parent"};
  const std::vector<std::string> given = Forwarded(options.coordinator_flags);
  command.insert(command.end(), given.begin(), given.end());
  return command;
}

// Keys from --api-key, beside those that the environment has already: every user of the machine can
// read a command line, but not an environment.
std::vector<std::string> CoordinatorEnvironment(const ServeOptions& options) {
  const std::vector<std::string>& flags = options.coordinator.api_keys;
  if (flags.empty()) return {};
  const char* const inherited = std::getenv(coordinator::kApiKeysVariable);
  return {absl::StrCat(coordinator::kApiKeysVariable, "=", absl::StrJoin(flags, "\n"), "\n",
                       inherited == nullptr ? "" : inherited)};
}

// Asks the coordinator how far the worker is, and tells the person who waits.
class Progress {
 public:
  explicit Progress(const coordinator::CoordinatorOptions& options)
      : options_(options),
        stub_(v1::Cluster::NewStub(
            grpc::CreateChannel(options.operators, grpc::InsecureChannelCredentials()))) {}

  // True once EPIC is ready.
  bool Poll() {
    grpc::ClientContext context;
    // The supervisor's loop stands still during this call, and a Ctrl-C waits for its end. So the
    // coordinator, which may still be starting, gets half a second.
    context.set_deadline(
        gpr_time_add(gpr_now(GPR_CLOCK_REALTIME), gpr_time_from_millis(500, GPR_TIMESPAN)));
    v1::ClusterState state;
    // An error is no news: until it listens, the coordinator cannot be asked, and the supervisor
    // knows whether it lives.
    if (!stub_->GetState(&context, {}, &state).ok()) return false;
    if (!state.ready()) {
      ShowBar(state);
      return false;
    }
    if (bar_) std::cerr << "\r\033[K";
    // 0.0.0.0 is where a server listens and no address that a client can be told.
    const std::string host = options_.host == "0.0.0.0" ? "127.0.0.1" : options_.host;
    std::cerr << "EPIC is ready: http://" << host << ":" << options_.port << "/v1  gRPC " << host
              << ":" << options_.grpc_port << std::endl;
    return true;
  }

 private:
  void ShowBar(const v1::ClusterState& state) {
    double loaded = 0;
    double total = 0;
    for (const v1::RankState& rank : state.ranks()) {
      loaded += static_cast<double>(rank.loaded_bytes());
      total += static_cast<double>(rank.total_bytes());
    }
    // In a log file, a bar that draws over itself would be one endless line.
    if (total == 0 || !isatty(STDERR_FILENO)) return;
    const double part = std::min(loaded / total, 1.0);
    const int filled = static_cast<int>(part * 40);
    std::fprintf(stderr, "\rloading [%s%s] %3.0f %%", std::string(filled, '#').c_str(),
                 std::string(40 - filled, '.').c_str(), part * 100);
    bar_ = true;
  }

  const coordinator::CoordinatorOptions& options_;
  const std::unique_ptr<v1::Cluster::Stub> stub_;
  bool bar_ = false;
};

// Runs a command to its end; its exit code.
int RunToEnd(const std::vector<std::string>& command) {
  std::vector<char*> arguments;
  for (const std::string& argument : command) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, arguments[0], nullptr, nullptr, arguments.data(), environ);
  if (error != 0) {
    std::cerr << "error: cannot start " << command[0] << ": " << std::strerror(error) << std::endl;
    return 1;
  }
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

// Prints the memory plan of each kind of worker.
int DryRun(const ServeOptions& options) {
  std::string shown;
  for (const Supervisor::Child& worker : Workers(options, "")) {
    const std::string kind = worker.name.substr(0, worker.name.find_last_of("0123456789 "));
    if (kind == shown) continue;
    shown = kind;
    if (options.ranks() > 1) std::cout << "Each " << kind << ":" << std::endl;
    const int code = RunToEnd(worker.command);
    if (code != 0) return code;
  }
  return 0;
}

// Another instance would not only have the port: Progress would ask it, and would say that a wrong
// model is ready.
absl::Status CheckAddresses(const coordinator::CoordinatorOptions& options) {
  const bool ip6 = options.host.find(':') != std::string::npos;
  const std::string host = ip6 ? absl::StrCat("[", options.host, "]") : options.host;
  RETURN_IF_ERROR(CheckFree("--operators", options.operators));
  RETURN_IF_ERROR(CheckFree("--port", absl::StrCat(host, ":", options.port)));
  return CheckFree("--grpc-port", absl::StrCat(host, ":", options.grpc_port));
}

int Serve(const ServeOptions& options) {
  if (!std::filesystem::is_directory(options.coordinator.model)) {
    std::cerr << "error: model: " << options.coordinator.model << " is no folder" << std::endl;
    return 1;
  }
  // Said once and before anything is loaded; the coordinator reads them for itself.
  coordinator::CoordinatorOptions checked = options.coordinator;
  if (const absl::Status keys = coordinator::ResolveApiKeys(checked); !keys.ok()) {
    std::cerr << "error: " << keys.message() << std::endl;
    return 1;
  }
  if (options.dry_run) return DryRun(options);
  if (const absl::Status free = CheckAddresses(options.coordinator); !free.ok()) {
    std::cerr << "error: " << free.message() << std::endl;
    return 1;
  }
  // mkdtemp makes the folder for this user alone, so no other user can reach the control stream and
  // its ranks. The folder outlives the supervisor, and so all children that use it.
  const RunFolder folder;
  if (folder.path().empty()) {
    std::perror("error: no folder for the control sockets");
    return 1;
  }
  const std::string control = absl::StrCat("unix:", folder.path(), "/control");
  std::vector<Supervisor::Child> children = Workers(options, folder.path());
  // The coordinator stands first, because children are asked to end in order: running requests can
  // only finish while the workers still compute. Its grace is longer than the time that it gives
  // requests.
  children.insert(children.begin(),
                  {.name = "coordinator",
                   .command = CoordinatorCommand(options, control),
                   .environment = CoordinatorEnvironment(options),
                   .grace = absl::Seconds(options.coordinator.shutdown_timeout_s + 5),
                   .essential = true});
  Supervisor supervisor(RealClock(), std::move(children));
  // Made at the first poll: gRPC's threads come after the signals are blocked.
  std::optional<Progress> progress;
  bool ready = false;
  return supervisor.Run([&] {
    if (ready) return;
    if (!progress) progress.emplace(options.coordinator);
    ready = progress->Poll();
    if (ready) supervisor.SetReady();
  });
}

}  // namespace

void AddServeCommand(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* command = app.add_subcommand("serve", "Serve a model on this machine.");
  command->add_option("model", options->coordinator.model,
                      "The folder of the Hugging Face checkpoint.")
      ->required();
  options->coordinator_flags = FlagsAddedBy(
      *command, [&] { coordinator::AddServingOptions(*command, options->coordinator); });
  // Keys travel in the environment: see CoordinatorEnvironment.
  std::erase_if(options->coordinator_flags,
                [](const CLI::Option* flag) { return flag->check_lname("api-key"); });
  command
      ->add_option("--attention-ranks", options->attention_ranks,
                   "The number of worker processes that own sequences (KV cache and attention).")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command
      ->add_option("--expert-ranks", options->expert_ranks,
                   "The number of worker processes that hold the experts. 0 lets the attention "
                   "ranks hold them too.")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  options->worker_flags =
      FlagsAddedBy(*command, [&] { worker::AddComputeOptions(*command, options->worker); });
  command->add_flag("--dry-run", options->dry_run, "Print the memory plan and exit.");
  command->callback([options, exit_code] { *exit_code = Serve(*options); });
}

}  // namespace epic::cli
