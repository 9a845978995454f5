// Whether an address can be listened on: asked before anything is loaded, so that a second instance
// on a machine says at once which of its flags to change.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace epic::cli {

// Returns FailedPrecondition, which names `flag`, if another process has the address. `address` is
// host:port, [host]:port or unix:/path. Port 0, unix sockets and hosts that cannot be resolved
// pass: the listener itself says later what is wrong with them.
absl::Status CheckFree(const std::string& flag, const std::string& address);

}  // namespace epic::cli
