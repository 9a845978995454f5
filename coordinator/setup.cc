#include "coordinator/setup.h"

#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "coordinator/service/grpc_listener.h"
#include "coordinator/term.h"

namespace epic::coordinator {

std::vector<std::string> ServedNames(const CoordinatorOptions& options) {
  if (!options.served_model_names.empty()) return options.served_model_names;
  // A path may end in a slash, and has no file name then.
  std::filesystem::path folder = std::filesystem::path(options.model).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();
  return {folder.filename().string()};
}

std::string AddressOf(const std::string& host, int port) {
  return absl::StrContains(host, ':') ? absl::StrCat("[", host, "]:", port)
                                      : absl::StrCat(host, ":", port);
}

LivenessLimits ScaledLimits(const char* given) {
  LivenessLimits limits;
  double scale = 1;
  // The condition is written so that NaN fails it. A scale below 1 would take slow ranks for lost
  // ones.
  if (given == nullptr || !absl::SimpleAtod(given, &scale) || !(scale >= 1 && scale <= 1000)) {
    return limits;
  }
  LOG_INFO("times of liveness are stretched by {}", scale);
  limits.tick_min *= scale;
  limits.silence *= scale;
  limits.loading_silence *= scale;
  return limits;
}

absl::StatusOr<std::optional<cluster::JoinToken>> ReadToken(const CoordinatorOptions& options) {
  const bool local = IsLoopback(options.control);
  std::optional<cluster::JoinToken> token;
  if (!options.join_token_file.empty()) {
    ASSIGN_OR_RETURN(token, cluster::JoinToken::ReadFile(options.join_token_file));
  }
  // Only this machine reaches a loopback address, so a token is not needed there, but counts if
  // given.
  if (local) return token;
  if (!token) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--join-token-file is needed: other machines reach --control ", options.control));
  }
  // A token proves who a worker is, and hides nothing of what is sent, so both must be asked for.
  if (!options.insecure) {
    return absl::InvalidArgumentError(
        absl::StrCat("--insecure is needed: --control ", options.control,
                     " is not encrypted, and belongs on a private network"));
  }
  LOG_WARNING("--insecure: the control stream on {} is not encrypted", options.control);
  return token;
}

absl::StatusOr<uint64_t> TermOf(const CoordinatorOptions& options, Storage& storage,
                                absl::Time now) {
  if (options.state_dir.empty()) return TermOfClock(now);
  absl::StatusOr<uint64_t> term = NextTerm(storage, options.state_dir);
  if (term.ok()) return term;
  return absl::Status(term.status().code(),
                      absl::StrCat("--state-dir: ", term.status().message()));
}

WorldOptions WorldOptionsOf(const CoordinatorOptions& options, uint64_t term,
                            const LivenessLimits& liveness, std::string secret) {
  // The version {0, 0} means that there is no map.
  CHECK_GT(term, 0u);
  return {.term = term,
          .expect_ranks = options.expect_ranks,
          .replicas_max = options.expert_replicas,
          .drain_move_after = absl::Seconds(options.drain_move_after_s),
          .liveness = liveness,
          .pair_secret = std::move(secret)};
}

std::string NewSecret(Random& random) {
  std::string secret;
  while (secret.size() < 32) {
    const uint64_t bits = random.Next();
    secret.append(reinterpret_cast<const char*>(&bits), sizeof bits);
  }
  CHECK_EQ(secret.size(), 32u);
  return secret;
}

}  // namespace epic::coordinator
