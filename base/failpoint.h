// Failpoints: named places where a test lets this process die or hang, to prove that the others go
// on. Off unless main.cc arms one; passing one that is not armed costs a load and a branch.
//
//   EPIC_FAILPOINT=dispatch-sent:kill@30 EPIC_FAILPOINT_ONCE=/tmp/once epic serve …
//
// The first process that passes the place for the 30th time kills itself (SIGKILL), or stops itself
// (`stop`: SIGSTOP). With EPIC_FAILPOINT_ONCE only the process that can create that file does so,
// so that of several ranks one fails, and its successor does not.
#pragma once

#include <atomic>
#include <span>
#include <string>

#include "absl/status/status.h"

namespace epic {

enum class Failpoint : int {
  kDispatchSent,      // rows are on their way to another rank
  kDispatchReceived,  // rows of another rank are queued here
  kExpertsComputed,   // a group of rows is computed and not answered
  kCombineSent,       // answers are on their way
  kCombineReceived,   // answers have been taken
  kExpertLoaded,      // one more slot is filled
  kMapTaken,          // a newer map is in force here
  kSequenceStarted,   // the coordinator has given a sequence
  kStepComputed,      // tokens are sampled and not reported
  kStepReported,      // tokens are reported
};

// [number of failpoints], in order, as EPIC_FAILPOINT spells them.
std::span<const char* const> FailpointNames();

// Takes the values of EPIC_FAILPOINT and EPIC_FAILPOINT_ONCE; "" means that the variable is not
// set. Returns InvalidArgument, which names the part that is wrong. Only main.cc may call this,
// before it starts another thread.
absl::Status ArmFailpoint(const std::string& text, const std::string& once_path);

namespace internal {
extern std::atomic<int> armed_failpoint;  // -1: none
void HitFailpoint();
}  // namespace internal

inline void Pass(Failpoint point) {
  if (internal::armed_failpoint.load(std::memory_order_relaxed) == static_cast<int>(point)) {
    internal::HitFailpoint();
  }
}

}  // namespace epic
