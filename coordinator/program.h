// All of the running coordinator: the core, its frontends, and who listens where.
#pragma once

#include "absl/status/status.h"
#include "coordinator/options.h"

namespace epic::coordinator {

// Runs until a signal (SIGINT, SIGTERM) can be read from the descriptor `signals`, and then until
// the requests that are left have ended or their time is up; a second signal ends them. Returns an
// error, which names the flag or the file, if the coordinator cannot start.
absl::Status RunProgram(const CoordinatorOptions& options, int signals);

}  // namespace epic::coordinator
