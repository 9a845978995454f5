// The API keys of clients, from the command line, a file and the environment.
//
// A key never passes through a command line that EPIC makes itself: every user of a machine can
// read the arguments of its processes. A file's name may; an environment belongs to its user.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace epic::coordinator {

// Holds keys, one a line or between commas. `epic serve` hands --api-key to the coordinator in this
// variable.
inline constexpr const char* kApiKeysVariable = "EPIC_API_KEYS";
// Holds one key: this is also the variable of --api-key (base/flags.h).
inline constexpr const char* kApiKeyVariable = "EPIC_API_KEY";

struct ApiKeySources {
  std::vector<std::string> flags;  // --api-key
  std::string file;                // --api-key-file: a key a line; empty: not given
  const char* several = nullptr;   // the value of EPIC_API_KEYS; null: not set
  const char* single = nullptr;    // the value of EPIC_API_KEY; null: not set
};

// Returns the keys of all sources; none if no source is given. A source that is given without a key
// is an InvalidArgument, since a mistake must not let everybody in; so is a key that is not visible
// ASCII or has a comma. The error names the source. FailedPrecondition if the file cannot be read.
absl::StatusOr<std::vector<std::string>> ReadApiKeys(const ApiKeySources& sources);

}  // namespace epic::coordinator
