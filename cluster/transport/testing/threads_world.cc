#include <memory>
#include <string>
#include <vector>

#include "base/env.h"
#include "cluster/transport/testing/world.h"
#include "cluster/transport/threads_collective.h"

namespace epic::cluster {

bool HasWorld(int size) { return true; }

bool OutlivesAbort() { return true; }

bool ComparesOperations() { return true; }

void RunWorld(int size, const std::function<void(Collective&)>& body) {
  ThreadsWorld world(size);
  std::vector<std::unique_ptr<Threads::Handle>> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.push_back(
        RealThreads().Start("rank " + std::to_string(rank), [&, rank] { body(world.end(rank)); }));
  }
}

}  // namespace epic::cluster
