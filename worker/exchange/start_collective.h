// The table of collectives that a worker can start by name.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cluster/transport/collective.h"

namespace epic::worker {

// "mpi" (cluster/transport/mpi/mpi_collective.h), once per process, by the thread of the rank's
// loop. Unimplemented, saying so, for what this build lacks.
absl::StatusOr<std::unique_ptr<cluster::Collective>> StartCollective(const std::string& name);

}  // namespace epic::worker
