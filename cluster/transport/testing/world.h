// A world of ranks for tests of a Collective and of what runs over one. A test is linked with one
// of three: threads of this process (threads_world.cc), the same over a fake of NCCL
// (nccl_world.cc), or the processes that mpirun started, all of which run the test (mpi_world.cc,
// which brings main too).
#pragma once

#include <functional>

#include "cluster/transport/collective.h"

namespace epic::cluster {

// Whether RunWorld can make a world of so many ranks. Any number of threads; of processes, those
// that are there.
bool HasWorld(int size);
// Whether the next RunWorld works after an Abort in this one.
bool OutlivesAbort();
// Whether operations that do not fit those of other ranks are noticed.
bool ComparesOperations();

// Runs `body` on every rank of a world of `size`, side by side; here, those of this process.
void RunWorld(int size, const std::function<void(Collective&)>& body);

// Asks until the operation is done, giving way in between. The error, if there is one.
absl::Status Wait(Collective& collective, Collective::Operation operation);

}  // namespace epic::cluster
