// All of the running coordinator: the core, its frontends, and who listens where.
#pragma once

#include "absl/status/status.h"
#include "coordinator/options.h"

namespace epic::coordinator {

// Runs until a signal (SIGINT, SIGTERM) that can be read from the descriptor `signals`, and then
// until the requests that are left have ended, or time is up for them; a second signal ends them.
// An error, naming the flag or the file, if it cannot start.
absl::Status RunProgram(const CoordinatorOptions& options, int signals);

}  // namespace epic::coordinator
