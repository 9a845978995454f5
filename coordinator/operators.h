// Operators: what operators may ask of the core, besides its status (inference.h).
#pragma once

#include <functional>

#include "absl/status/status.h"
#include "coordinator/world/event_log.h"

namespace epic::coordinator {

// Any thread may call; `done` is called once, on the core's thread, or at once when it has ended.
class Operators {
 public:
  using Done = std::function<void(absl::Status)>;

  virtual ~Operators() = default;
  // NotFound for an unknown rank.
  virtual void Fence(int rank, Done done) = 0;
  virtual void Freeze(bool frozen, Done done) = 0;
  // FailedPrecondition, naming the shortfall, if the others cannot do the rank's work. `cancel`:
  // takes a drain back.
  virtual void Drain(int rank, bool cancel, Done done) = 0;
  virtual EventLog& events() = 0;
};

}  // namespace epic::coordinator
