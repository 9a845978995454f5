// The API keys of clients, from the command line, a file and the environment.
//
// A key never passes through a command line that EPIC makes itself: every user of a machine can
// read the arguments of its processes. A file's name may; an environment belongs to its user.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace epic::coordinator {

// Keys, one a line or between commas. `epic serve` hands --api-key to the coordinator in it.
inline constexpr const char* kApiKeysVariable = "EPIC_API_KEYS";
// One key, as the command line had it before there were several.
inline constexpr const char* kApiKeyVariable = "EPIC_API_KEY";

struct ApiKeySources {
  std::vector<std::string> flags;  // --api-key
  std::string file;                // --api-key-file: a key a line; empty: not given
  const char* several = nullptr;   // the value of EPIC_API_KEYS; null: not set
  const char* single = nullptr;    // the value of EPIC_API_KEY; null: not set
};

// All keys of all sources; empty if no source is given. InvalidArgument, naming the source, for one
// that is given without a key (a mistake must not let everybody in), and for a key that is not
// visible ASCII or has a comma. FailedPrecondition if the file cannot be read.
absl::StatusOr<std::vector<std::string>> ReadApiKeys(const ApiKeySources& sources);

}  // namespace epic::coordinator
