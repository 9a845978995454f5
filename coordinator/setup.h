// Turns the flags of epic-coordinator into what its parts are given, before anything runs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/env.h"
#include "base/storage.h"
#include "cluster/join_token.h"
#include "coordinator/options.h"
#include "coordinator/world/world.h"

namespace epic::coordinator {

// The names that clients may use: those that were given, else the name of the model's folder.
std::vector<std::string> ServedNames(const CoordinatorOptions& options);
// host:port, with an IPv6 address in brackets.
std::string AddressOf(const std::string& host, int port);
// `scale` (1 to 1000) stretches the times after which something counts as too late, for sanitizers
// and crowded machines. Null, or a text that is no such number, changes nothing.
LivenessLimits ScaledLimits(const char* scale);
// Returns no token if none was given and none is needed. Returns InvalidArgument, which names the
// flag that is missing, if other machines reach --control without a token.
absl::StatusOr<std::optional<cluster::JoinToken>> ReadToken(const CoordinatorOptions& options);
// Returns the term of this life by coordinator/term.h, from --state-dir or from the clock. Must be
// called once in each life.
absl::StatusOr<uint64_t> TermOf(const CoordinatorOptions& options, Storage& storage,
                                absl::Time now);
// `secret` belongs to this life alone. If it is empty, pairs of ranks prove nothing to each other.
WorldOptions WorldOptionsOf(const CoordinatorOptions& options, uint64_t term,
                            const LivenessLimits& liveness, std::string secret);
// 32 random bytes.
std::string NewSecret(Random& random);

}  // namespace epic::coordinator
