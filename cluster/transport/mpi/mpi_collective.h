// The Collective over MPI: the processes that mpirun, or Slurm's srun, started together are one
// epoch, from start to end. A world in which a process dies, or aborts, ends: the launcher ends the
// other processes, and starting it again makes the next epoch.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "cluster/transport/collective.h"

namespace epic::cluster {

// Once per process, by the thread that will use the collective; other threads may run beside it.
// Destroying it waits until all ranks do the same; a rank that fails calls Abort instead. A process
// that no launcher started is a world of one. Unavailable if MPI refuses.
absl::StatusOr<std::unique_ptr<Collective>> StartMpi();

}  // namespace epic::cluster
