// Whether an address can be listened on: asked before anything is loaded, so that a second instance
// on a machine says at once which of its flags to change.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace epic::cli {

// `flag` is named in the error. `address`: host:port, [host]:port or unix:/path; port 0, unix
// sockets and hosts that cannot be resolved pass: who listens in the end says what is wrong with
// them. FailedPrecondition if another process has the address.
absl::Status CheckFree(const std::string& flag, const std::string& address);

}  // namespace epic::cli
