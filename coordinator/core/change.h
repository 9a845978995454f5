// Core::Change: one change of the core, for its two sources alone.
#pragma once

#include <memory>
#include <vector>

#include "coordinator/core/core.h"

namespace epic::coordinator {

// Holds the core's lock. At its end the lock is let go, and then the streams of journals that have
// grown are told: a listener may call the core.
class ABSL_SCOPED_LOCKABLE Core::Change {
 public:
  explicit Change(Core& core) ABSL_EXCLUSIVE_LOCK_FUNCTION(core.mutex_) : core_(core) {
    core_.mutex_.Lock();
  }
  ~Change() ABSL_UNLOCK_FUNCTION() {
    const std::vector<std::shared_ptr<Journal>> grown = core_.requests_.TakeGrown();
    core_.mutex_.Unlock();
    for (const auto& journal : grown) journal->Notify();
  }
  Change(const Change&) = delete;

 private:
  Core& core_;
};

}  // namespace epic::coordinator
