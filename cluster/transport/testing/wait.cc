#include <thread>

#include "cluster/transport/testing/world.h"

namespace epic::cluster {

absl::Status Wait(Collective& collective, Collective::Operation operation) {
  while (true) {
    const absl::StatusOr<bool> done = collective.Done(operation);
    if (!done.ok()) return done.status();
    if (*done) return absl::OkStatus();
    std::this_thread::yield();
  }
}

}  // namespace epic::cluster
