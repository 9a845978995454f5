// The table of exchanges by which a worker can step together with others.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/env.h"
#include "worker/exchange/epoch_source.h"

namespace epic::worker {

// "mpi" (cluster/transport/mpi/mpi_collective.h), or "nccl" (worker/exchange/nccl_epochs.h) on a
// card with epochs of `ranks`; once per process, by the thread of the rank's loop. Unimplemented,
// saying so, for what this build lacks; Unavailable for what this machine does.
absl::StatusOr<std::unique_ptr<EpochSource>> StartEpochs(const std::string& name, int ranks,
                                                         int card, Clock& clock, Random& random,
                                                         Threads& threads);

}  // namespace epic::worker
